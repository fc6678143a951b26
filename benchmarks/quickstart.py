"""How good the quickstart's model is: its losses beside the unigram entropy, in numbers and drawn.

A model that knew only how often each token occurs would reach the unigram entropy. `make
quickstart` runs this after training. It draws checkpoints/quickstart/loss.svg, needs no plotting
library, and exits with 1 if the best validation loss is above three quarters of the entropy.
"""

import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

BOUND = 0.75
RUN = Path("checkpoints/quickstart")

Curve = list[tuple[int, float]]  # (step, nats per token)

# The picture, in pixels. Its background is transparent and its colours are of middle lightness, so
# that it can be read on a white page and on a dark one.
WIDTH, HEIGHT = 800, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 636, 36, 296  # the edges of the plot; names stand to its right
TEXT, TRAIN, VAL = "#78818b", "#3b82c4", "#d9702b"


class Label(NamedTuple):
    """A name at the right end of a line."""

    name: str
    value: float
    color: str


def curves(metrics: str) -> tuple[Curve, Curve]:
    """The training and the validation losses that the text of a metrics.jsonl holds."""
    lines = [json.loads(line) for line in metrics.splitlines()]
    train = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    val = [(line["step"], line["val/loss"]) for line in lines if "val/loss" in line]
    return train, val


def picture(train: Curve, val: Curve, entropy: float) -> str:
    """Both curves and the entropy as one self-contained SVG."""
    losses = [loss for _, loss in train + val] + [entropy]
    low, high = math.floor(min(losses)), math.ceil(max(losses))
    last = max(step for step, _ in train + val)

    def x(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / last

    def y(loss: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (loss - low) / (high - low)

    def points(curve: Curve) -> str:
        return " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve)

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{TEXT}">',
        "<title>Training and validation loss of the quickstart, by step</title>",
        f'<text x="{LEFT}" y="{TOP - 16}">loss, nats per token</text>',
        f'<text x="{RIGHT}" y="{BOTTOM + 38}" text-anchor="end">step</text>',
    ]
    for loss in range(low, high + 1):
        drawn += [
            f'<path d="M{LEFT} {y(loss):.1f}H{RIGHT}" stroke="{TEXT}" stroke-opacity="0.25"/>',
            f'<text x="{LEFT - 10}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss}</text>',
        ]
    drawn += [
        f'<text x="{x(step):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{step}</text>'
        for step in (last * i // 6 for i in range(7))
    ]
    drawn += [
        f'<path d="M{LEFT} {y(entropy):.1f}H{RIGHT}" stroke="{TEXT}" stroke-width="1.5" '
        'stroke-dasharray="6 5"/>',
        f'<polyline points="{points(train)}" fill="none" stroke="{TRAIN}" stroke-width="1.5"/>',
        f'<polyline points="{points(val)}" fill="none" stroke="{VAL}" stroke-width="2"/>',
    ]
    drawn += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5" fill="{VAL}"/>' for s, v in val]
    labels = [
        Label("unigram entropy", entropy, TEXT),
        Label("val/loss", val[-1][1], VAL),
        Label("train/loss", train[-1][1], TRAIN),
    ]
    above = -math.inf
    for label in sorted(labels, key=lambda label: -label.value):
        above = max(y(label.value) + 4, above + 16)  # names of close ends stand under one another
        text = f"{label.name} {label.value:.2f}"
        drawn.append(f'<text x="{RIGHT + 8}" y="{above:.1f}" fill="{label.color}">{text}</text>')
    return "\n".join([*drawn, "</svg>"]) + "\n"


def main() -> int:
    from light_llm.preprocess import unigram_entropy

    train, val = curves((RUN / "metrics.jsonl").read_text())
    best = min(loss for _, loss in val)
    entropy = unigram_entropy(["data/quickstart/val"])
    print(f"unigram entropy of the held-out text  {entropy:.3f} nats/token")
    print(
        f"validation loss of the best model     {best:.3f} nats/token, {best / entropy:.2f} of it"
    )
    (RUN / "loss.svg").write_text(picture(train, val, entropy))
    print(f"loss curve                            {RUN / 'loss.svg'}")
    return int(best > BOUND * entropy)


if __name__ == "__main__":
    sys.exit(main())
