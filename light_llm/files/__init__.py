"""Files: what is read from outside, and how what is ours gets to the disk."""
