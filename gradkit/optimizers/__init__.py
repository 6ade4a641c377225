"""One file per method: its paper, its own new primitive, its alias (a short chain)."""
