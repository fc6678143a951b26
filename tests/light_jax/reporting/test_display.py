"""The display of a run, as text: it fits any terminal, and cuts no word."""

import pytest

from light_jax.reporting.display import Numbers, frame
from light_llm.printing import wrapped

FULL = Numbers(
    step=1250,
    num_steps=10_000,
    loss=3.4123,
    loss_now=3.3981,
    losses=(5.0, 4.5, 4.1, 3.8, 3.5),
    rate=2.98e-4,
    grad_norm=0.812,
    tokens_per_second=32_800.0,
    mfu=0.412,
    step_seconds=0.25,
    data_wait=0.003,
    memory=13_207_024_435,
    seconds_left=3731.0,
    best=3.5512,
    best_step=1000,
    val_loss=3.6,
    evaluation_in=250,
    save_in=1,
)
ALL = [
    "step 1,250/10,000",
    "loss 3.4123",
    "now 3.3981",
    "lr 2.98e-04",
    "grad norm 0.812",
    "█▆▄▂▁",
    "32.8 k tokens/s",
    "MFU 41.2%",
    "0.25 s/step",
    "data wait 0%",
    "memory 12.3 GiB",
    "best 3.5512 at step 1,000",
    "last 3.6000",
    "evaluation in 250 steps",
    "save in 1 step",
]


@pytest.mark.parametrize("width", [28, 40, 60, 79, 119, 200])
def test_everything_is_there_whole_at_any_width(width):
    lines = [line.plain for line in frame(FULL, width, 754.0)]
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert not [part for part in ALL if part not in text]


def test_even_a_sliver_is_not_overrun():
    for width in range(1, 28):
        assert all(line.cell_len <= width for line in frame(FULL, width, 754.0))


@pytest.mark.parametrize("width, rows", [(79, 7), (119, 5)])
def test_a_wide_terminal_needs_fewer_lines(width, rows):
    lines = [line.plain for line in frame(FULL, width, 754.0)]
    assert len(lines) <= rows
    assert "ETA 1:02:11" in lines[0]
    assert "0:12:34" in lines[0]
    assert "━" in lines[0]


def test_what_is_not_known_is_not_shown():
    text = "\n".join(line.plain for line in frame(Numbers(0, 6), 79, 0.0))
    assert text.split("\n")[0].startswith("step 0/6")
    for name in ("loss", "MFU", "best", "None", "ETA"):
        assert name not in text


def test_text_wraps_between_words_below_the_text():
    line = "steps       600 of 2,048 tokens (8 sequences × 1 micro-batch × 256), 0.13 epochs"
    assert wrapped(line, 60) == (
        "steps       600 of 2,048 tokens (8 sequences × 1 micro-batch\n"
        "            × 256), 0.13 epochs"
    )
    assert wrapped(line, 200) == line
    assert wrapped("a\n" + "x" * 90 + " y", 40) == "a\n" + "x" * 90 + "\n  y"
