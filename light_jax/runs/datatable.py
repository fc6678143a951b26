"""The data of a run on its page: what they are, and what was taken of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from light_jax.runs import html
from light_jax.runs.facts import Facts
from light_jax.runs.history import History
from light_jax.sources import Taken


def data_table(facts: Facts, history: History) -> str:
    """What the data are, and how far the run has come in them."""
    windows = history.step * facts.windows_per_step
    if taken := facts.taken(windows):
        return pairs((*facts.data, ("position", f"window {windows:,}"))) + _sources(
            taken, facts.taken(facts.num_steps * facts.windows_per_step)
        )
    epoch, number = divmod(windows, max(1, facts.windows))
    position = f"window {number:,} of {facts.windows:,} in epoch {epoch}, {windows:,} in all"
    epochs = f"{windows / max(1, facts.windows):.2f} of "
    epochs += f"{facts.num_steps * facts.windows_per_step / max(1, facts.windows):.2f}"
    return pairs((*facts.data, ("epochs", epochs), ("position", position)))


def _sources(taken: Sequence[Taken], in_all: Sequence[Taken]) -> str:
    """What each source gave so far."""
    total = max(1, sum(source.windows for source in taken))
    rows = [
        (
            html.text(source.name),
            f'<data value="{source.tokens}">{source.tokens:,}</data>',
            f"{source.windows / total:.2%}",
            f"{source.epochs:.2f} of {whole.epochs:.2f}",
        )
        for source, whole in zip(taken, in_all, strict=True)
    ]
    return html.table(("source", "tokens", "share", "epochs"), rows, " nnn")


def pairs(pairs: Iterable[tuple[str, str]]) -> str:
    """A label and its text on each line."""
    rows = [(f'<span class="dim">{html.text(a)}</span>', html.text(b)) for a, b in pairs]
    return html.table(("", ""), rows, wrap=True)
