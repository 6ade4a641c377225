"""The parts of `experiments/reliability.py`."""
