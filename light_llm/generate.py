"""Text from a trained model in PyTorch, token by token.

The module itself can be called, as its function `generate`: `light_llm.generate(model, ids, …)`.

Letters: B batch, T position, V vocab, D model.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
import torch

from light_llm.models.transformer.model import Transformer
from light_llm.sampling import NextIds, Sampling, check_prompts, left_padded, until_done


def generate(
    model: Transformer, prompt: Sequence[int], sampling: Sampling, eos_id: int | None = None
) -> Iterator[int]:
    """The ids that continue one prompt, each as soon as it is chosen. See `generate_batch`."""
    rows = generate_batch(model, [prompt], sampling, eos_id)
    return (id for row in rows for id in row if id is not None)


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos_id: int | None = None,
    *,
    first_row: int = 0,
) -> Iterator[NextIds]:
    """The ids that continue several prompts of any lengths: for each step, one id per prompt.

    A prompt that has ended gives None: after max_tokens, before `eos_id` (which is not returned),
    or when it and its continuation fill the model's max_seq_len. Dropout is off in every mode.

    Args:
        first_row: the index of the first prompt, where these are a part of a longer list: the seed
            and a prompt's index in that list decide its draws.

    Raises:
        UserError: at the call, not at the first id: an empty prompt or one that leaves no room, an
            id outside the vocabulary, or a bidirectional model. Later: logits that are not finite.
    """
    rooms = check_prompts(model.cfg, prompts, sampling)
    width = max(map(len, prompts))
    tokens_BT, padding_B = left_padded(prompts, width)
    pad_B = torch.from_numpy(padding_B)
    cache = model.new_cache(pad_B if pad_B.any() else None)

    def steps() -> Iterator[Sequence[int]]:
        device = model.tok_emb.weight.device
        new_BT = torch.from_numpy(tokens_BT).to(device, torch.long)
        seen_BV = torch.zeros(len(prompts), model.cfg.vocab_size, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            seen_BV[row, list(prompt)] = True
        for length, draw_B in enumerate(sampling.draws(len(prompts), first_row), start=width):
            # a full row ends; while others continue, its padding grows so that its position stays
            pad_B.add_(length - pad_B > model.cfg.max_seq_len)
            with torch.inference_mode(), _without_dropout(model):
                last_B1D = model.hidden(new_BT, cache)[:, -1:]
                logits_BV = model.logits(last_B1D)[:, 0].cpu()
            ids_B = choose(logits_BV, seen_BV, draw_B, sampling)
            yield ids_B.where(logits_BV.isfinite().all(dim=-1), -1).tolist()
            seen_BV.scatter_(1, ids_B[:, None], True)
            new_BT = ids_B[:, None].to(device)

    return until_done(steps(), rooms, eos_id)


@contextlib.contextmanager
def _without_dropout(model: Transformer) -> Iterator[None]:
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def choose(
    logits_BV: torch.Tensor, seen_BV: torch.Tensor, draw_B: np.ndarray, how: Sampling
) -> torch.Tensor:
    """One id for each row [B], by the numbers [B] in [0, 1) of `Sampling.draws`."""
    if how.repetition_penalty != 1:
        logits_BV = penalize(logits_BV, seen_BV, how.repetition_penalty)
    if how.temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV.double() / how.temperature
    if how.top_k is not None:
        logits_BV = keep_top_k(logits_BV, how.top_k)
    if how.top_p is not None:
        logits_BV = keep_top_p(logits_BV, how.top_p)
    sums_BV = logits_BV.softmax(dim=-1).cumsum(dim=-1)
    # the first id whose sum exceeds the draw: never one of probability 0
    return torch.searchsorted(
        sums_BV, torch.from_numpy(draw_B)[:, None] * sums_BV[:, -1:], right=True
    )[:, 0]


def penalize(logits_BV: torch.Tensor, seen_BV: torch.Tensor, penalty: float) -> torch.Tensor:
    """Positive logits of the seen ids divided by `penalty`, negative ones multiplied."""
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def keep_top_k(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
    """All but the k largest of a row at -inf."""
    top = logits_BV.topk(min(k, logits_BV.shape[-1]))
    return torch.full_like(logits_BV, -torch.inf).scatter(-1, top.indices, top.values)


def keep_top_p(logits_BV: torch.Tensor, p: float) -> torch.Tensor:
    """All but the fewest largest of a row whose probabilities sum to p or more at -inf."""
    descending_BV, index_BV = logits_BV.sort(descending=True, stable=True)
    probs_BV = descending_BV.softmax(dim=-1)
    before_BV = probs_BV.cumsum(dim=-1) - probs_BV
    kept_BV = descending_BV.masked_fill(before_BV >= p, -torch.inf)
    return torch.empty_like(logits_BV).scatter(-1, index_BV, kept_BV)


class _Callable(ModuleType):
    """Importing a submodule binds its name in the package, where users look for the function."""

    __call__ = staticmethod(generate)


sys.modules[__name__].__class__ = _Callable
