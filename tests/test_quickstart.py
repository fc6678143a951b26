"""The picture that `make quickstart` draws of its run."""

import json
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks/quickstart.py"))
SVG = "{http://www.w3.org/2000/svg}"
LINES = [
    {"step": 10, "train/loss": 7.0},
    {"step": 20, "train/loss": 6.0},
    {"step": 20, "val/loss": 5.5, "val/perplexity": 244.7},
    {"step": 30, "train/loss": 5.0},
    {"step": 40, "train/loss": 4.0},
    {"step": 40, "val/loss": 4.5, "val/perplexity": 90.0},
]


def test_every_logged_loss_is_drawn_where_it_belongs():
    metrics = "".join(json.dumps(line) + "\n" for line in LINES)
    train, val = SCRIPT["curves"](metrics)
    assert train == [(10, 7.0), (20, 6.0), (30, 5.0), (40, 4.0)]
    assert val == [(20, 5.5), (40, 4.5)]

    root = ElementTree.fromstring(SCRIPT["picture"](train, val, entropy=6.2))
    drawn = [
        [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        for line in root.iter(f"{SVG}polyline")
    ]
    assert [len(points) for points in drawn] == [4, 2]
    (x1, y1), (x2, y2), (x3, y3), (x4, y4) = drawn[0]  # equal steps, equal falls
    assert x4 > x1
    assert y4 > y1  # a lower loss stands lower: y counts from the top
    assert [x2 - x1, x3 - x2] == pytest.approx([(x4 - x1) / 3] * 2, abs=0.2)  # pixels
    assert [y2 - y1, y3 - y2] == pytest.approx([(y4 - y1) / 3] * 2, abs=0.2)
    assert drawn[1] == [
        (x2, pytest.approx((y2 + y3) / 2, abs=0.2)),
        (x4, pytest.approx((y3 + y4) / 2, abs=0.2)),
    ]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts[-3:] == ["unigram entropy 6.20", "val/loss 4.50", "train/loss 4.00"]


def test_the_committed_picture_needs_no_other_file():
    text = (ROOT / "docs/quickstart.svg").read_text()
    ElementTree.fromstring(text)
    assert re.findall(r"\b(?:href|src|url)\b", text) == []
