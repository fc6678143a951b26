"""What a person sees of a run: console, summary, log, metrics.jsonl, Weights & Biases."""
