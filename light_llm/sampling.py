"""How generation chooses and when it ends: what both frameworks' decoders share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig

NextIds = list[int | None]
"""The ids of one step, one per row; None where the row has ended."""


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen: penalty, temperature, top_k, then top_p of the rest.

    Args:
        max_tokens: write at most this many ids after each prompt.
        temperature: divides the logits; 0 always takes the most probable id.
        top_k: choose among this many of the most probable ids.
        top_p: choose among the fewest most probable ids whose probabilities reach this sum
            (Holtzman et al. 2020).
        repetition_penalty: over 1, ids of the prompt and the continuation become less probable:
            their positive logits are divided by it, their negative ones multiplied (Keskar et al.
            2019).
        seed: for the random draws; None takes a new one each time.

    Raises:
        UserError: names every value that is out of range.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        rules: list[tuple[str, Any, bool, str]] = [
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "must be 1 or more"),
            (
                "temperature",
                self.temperature,
                self.temperature == 0 or 1e-3 <= self.temperature < math.inf,
                "must be 0 (always the most probable token) or from 0.001 on",
            ),
            (
                "top_k",
                self.top_k,
                self.top_k is None or self.top_k >= 1,
                "must be 1 or more; leave it out to choose among all tokens",
            ),
            (
                "top_p",
                self.top_p,
                self.top_p is None or 0 < self.top_p <= 1,
                "must be above 0 and at most 1; leave it out to choose among all tokens",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0.01 <= self.repetition_penalty <= 100,
                "must be from 0.01 to 100; 1 is none",
            ),
            (
                "seed",
                self.seed,
                self.seed is None or 0 <= self.seed < 2**63,
                "must be from 0 to 2^63 - 1",
            ),
        ]
        broken = [f"{name}={value} {rule}" for name, value, kept, rule in rules if not kept]
        if broken:
            raise UserError("\n".join(broken))

    def draws(self, rows: int, first_row: int = 0) -> Iterator[np.ndarray]:
        """For each step a float32 [rows] in [0, 1): where to choose in the cumulative sum.

        A row's draws depend only on the seed and on its index, so the continuation of a prompt is
        the same in both frameworks and does not depend on the other prompts.

        Args:
            first_row: the index of the first of these rows.
        """
        entropy = np.random.SeedSequence(self.seed).entropy
        seeds = (
            np.random.SeedSequence(entropy, spawn_key=(row,))  # what `spawn` gives
            for row in range(first_row, first_row + rows)
        )
        generators = [np.random.default_rng(seed) for seed in seeds]
        while True:
            # below 1 by more than a rounding error of the sum of all probabilities
            drawn = [generator.random(dtype=np.float32) for generator in generators]
            yield np.minimum(np.array(drawn, np.float32), np.float32(1 - 2**-20))


def check_prompts(
    cfg: TransformerConfig, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[int]:
    """How many ids may be written after each prompt (a list of ids).

    Raises:
        UserError: prompts that the model cannot continue.
    """
    if not prompts:
        raise UserError("there is no prompt; give at least one")
    for prompt in prompts:
        if not prompt:
            raise UserError("the prompt is empty; begin with at least one token")
        bad = [id for id in prompt if not 0 <= id < cfg.vocab_size]
        if bad:
            raise UserError(
                f"the prompt holds token id {bad[0]}, outside the model's "
                f"vocab_size={cfg.vocab_size}; use the tokenizer that the model was trained with"
            )
        if len(prompt) >= cfg.max_seq_len:
            raise UserError(
                f"the prompt's {len(prompt)} tokens leave no room in the model's "
                f"max_seq_len={cfg.max_seq_len}; shorten it to {cfg.max_seq_len - 1} or fewer"
            )
    return [min(sampling.max_tokens, cfg.max_seq_len - len(prompt)) for prompt in prompts]


def left_padded(prompts: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as int32 ids [B, width], padded on the left, and the padding of each row [B]."""
    ids_BT = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        ids_BT[row, width - len(prompt) :] = prompt
    return ids_BT, np.array([width - len(prompt) for prompt in prompts], np.int32)


def until_done(
    steps: Iterator[Sequence[int]], rooms: Sequence[int], eos_id: int | None
) -> Iterator[NextIds]:
    """The ids of each step, None where a row has ended; stops when all rows have ended.

    A row ends before `eos_id`, or when it has no room left.

    Args:
        steps: for each step one id per row; a negative id means that the logits are not finite.
        rooms: how many ids each row may have.

    Raises:
        UserError: logits that are not finite.
    """
    running = [True] * len(rooms)
    for step in range(max(rooms)):
        ids = list(next(steps))
        row: NextIds = []
        for b, id in enumerate(ids):
            running[b] = running[b] and step < rooms[b] and id != eos_id
            if running[b] and id < 0:
                raise UserError(
                    "the model's logits are not finite; use float32 or another checkpoint"
                )
            row.append(id if running[b] else None)
        if not any(running):
            return
        yield row
