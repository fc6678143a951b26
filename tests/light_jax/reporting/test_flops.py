"""The model's arithmetic, by hand, and its share of the peak."""

import pytest

from light_jax.reporting.flops import flops_per_token, peak_flops, share_seen, utilisation
from light_llm.models.transformer.config import TransformerConfig


def model(**attention) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=100, d_model=32, num_layers=3, attention={"num_heads": 4, **attention}
    )


def pairs(sees, seq_len=6) -> float:
    return sum(sees(t, s) for t in range(seq_len) for s in range(seq_len)) / seq_len**2


@pytest.mark.parametrize(
    "attention, sees",
    [
        ({"mask_type": "causal"}, lambda t, s: s <= t),
        ({"mask_type": "bidirectional"}, lambda t, s: True),
        ({"mask_type": "sliding_window", "window_size": 2}, lambda t, s: t - 2 <= s <= t),
        ({"mask_type": "sliding_window", "window_size": 99}, lambda t, s: s <= t),
        (
            {"window_pattern": [2, None]},  # two of three layers
            lambda t, s: (2 * (t - 2 <= s <= t) + (s <= t)) / 3,
        ),
    ],
)
def test_the_share_that_a_mask_shows_is_counted_in_pairs(attention, sees):
    assert share_seen(model(**attention), 6) == pytest.approx(pairs(sees))


def test_a_causal_mask_shows_half():
    assert share_seen(model(), 1024) == 1025 / 2048


def test_flops_of_a_token_by_hand():
    scores = 12 * 3 * 4 * 8 * 1024
    assert flops_per_token(model(), 5000, 1024) == 6 * 5000 + scores
    assert flops_per_token(model(), 5000, 1024, 0.5) == 6 * 5000 + scores / 2


def test_both_figures_are_named_where_the_peak_is_known_and_none_where_it_is_not():
    cfg = model()
    figures = utilisation(cfg, 5000, 1024, 1e9)
    assert figures == {
        "mfu": flops_per_token(cfg, 5000, 1024) / 1e9,
        "mfu_masked": flops_per_token(cfg, 5000, 1024, 1025 / 2048) / 1e9,
    }
    assert utilisation(cfg, 5000, 1024, None) == {}


def test_a_cpu_has_no_peak():
    import jax

    assert peak_flops(jax.devices("cpu")[0]) is None
