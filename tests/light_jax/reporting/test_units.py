"""Numbers as a person reads them."""

from __future__ import annotations

import pytest

from light_jax.reporting.units import perplexity_form


@pytest.mark.parametrize(
    ("loss", "told"),
    [(0.0, "1.00"), (2.5, "12.18"), (13.9, "1.1e+06"), (100.0, "2.7e+43"), (1e4, "∞")],
)
def test_the_perplexity_of_a_diverged_run_is_short(loss, told):
    assert perplexity_form(loss) == told
