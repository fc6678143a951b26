"""What a model is, and how a trained one is used (PyTorch)."""
