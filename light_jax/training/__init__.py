"""A run: its step, and the loop around it."""
