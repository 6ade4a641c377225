"""Layers as pure functions: what they compute, or how their gradient is computed, is the method."""
