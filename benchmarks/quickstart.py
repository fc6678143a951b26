"""How good the quickstart's model is: its validation loss against the text's unigram entropy.

A model that knew nothing but how often each token occurs would reach the unigram entropy. Run by
`make quickstart`; exits with 1 if the loss is above three quarters of it.
"""

import json
import sys
from pathlib import Path

from light_llm.preprocess import unigram_entropy

BOUND = 0.75

lines = Path("checkpoints/quickstart/metrics.jsonl").read_text().splitlines()
loss = min(line["val/loss"] for line in map(json.loads, lines) if "val/loss" in line)
entropy = unigram_entropy(["data/quickstart/val"])
print(f"unigram entropy of the held-out text  {entropy:.3f} nats/token")
print(f"validation loss of the best model     {loss:.3f} nats/token, {loss / entropy:.2f} of it")
sys.exit(loss > BOUND * entropy)
