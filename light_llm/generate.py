"""Text from a trained model, token by token. Letters: T position, V vocab, D model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from light_llm.errors import UserError
from light_llm.models.transformer.attention import Cache
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.model import Transformer


def generate(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    eos_id: int | None = None,
) -> Iterator[int]:
    """The ids that continue `prompt_ids`, each as soon as it is chosen.

    Ends after `max_tokens`, before `eos_id` (which is not given out), or when prompt and
    continuation together fill the model's max_seq_len. Without dropout, whatever the model's mode.

    Args:
        temperature: divides the logits; 0 always takes the most probable id.
        top_k: choose among this many most probable ids.
        top_p: choose among the fewest most probable ids whose probabilities reach this sum.
        repetition_penalty: over 1, makes ids of the prompt and the continuation less probable.
        seed: of the draws, which are made on the CPU whatever the model's device.

    Raises:
        UserError: at the call, not at the first id: an argument out of range, an empty prompt or
            one that leaves no room, or a bidirectional model.
    """
    check_sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    _check_prompt(model.cfg, prompt_ids)
    cache = model.new_cache()
    rng = torch.Generator()
    if seed is None:
        rng.seed()
    else:
        rng.manual_seed(seed)

    def choose(logits_V: torch.Tensor, ids: list[int]) -> int:
        logits_V = penalize(logits_V, ids, repetition_penalty)
        return sample(logits_V, temperature=temperature, top_k=top_k, top_p=top_p, generator=rng)

    steps = min(max_tokens, model.cfg.max_seq_len - len(prompt_ids))
    return _continue(model, list(prompt_ids), cache, steps, choose, eos_id)


def _continue(
    model: Transformer,
    ids: list[int],
    cache: list[Cache],
    steps: int,
    choose: Callable[[torch.Tensor, list[int]], int],
    eos_id: int | None,
) -> Iterator[int]:
    new_ids = ids
    for _ in range(steps):
        id = choose(_next_logits(model, new_ids, cache), ids)
        if id == eos_id:
            return
        yield id
        new_ids = [id]
        ids = ids + new_ids


def check_sampling(
    *,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float,
    seed: int | None,
) -> None:
    """Raise a UserError that names every argument of `generate` that is out of range."""
    rules: list[tuple[str, Any, bool, str]] = [
        ("max_tokens", max_tokens, max_tokens >= 1, "must be 1 or more"),
        (
            "temperature",
            temperature,
            0 <= temperature < math.inf,
            "must be 0 (always the most probable token) or more",
        ),
        (
            "top_k",
            top_k,
            top_k is None or top_k >= 1,
            "must be 1 or more; leave it out to choose among all tokens",
        ),
        (
            "top_p",
            top_p,
            top_p is None or 0 < top_p <= 1,
            "must be above 0 and at most 1; leave it out to choose among all tokens",
        ),
        (
            "repetition_penalty",
            repetition_penalty,
            0 < repetition_penalty < math.inf,
            "must be above 0; 1 is none",
        ),
        ("seed", seed, seed is None or 0 <= seed < 2**63, "must be from 0 to 2^63 - 1"),
    ]
    broken = [f"{name}={value} {rule}" for name, value, kept, rule in rules if not kept]
    if broken:
        raise UserError("\n".join(broken))


def _check_prompt(cfg: TransformerConfig, prompt_ids: Sequence[int]) -> None:
    if not prompt_ids:
        raise UserError("the prompt is empty; begin with at least one token")
    bad = [id for id in prompt_ids if not 0 <= id < cfg.vocab_size]
    if bad:
        raise UserError(
            f"the prompt holds token id {bad[0]}, outside the model's vocab_size={cfg.vocab_size}; "
            f"use the tokenizer that the model was trained with"
        )
    if len(prompt_ids) >= cfg.max_seq_len:
        raise UserError(
            f"the prompt's {len(prompt_ids)} tokens leave no room in the model's "
            f"max_seq_len={cfg.max_seq_len}; shorten it to {cfg.max_seq_len - 1} or fewer"
        )


def _next_logits(model: Transformer, new_ids: list[int], cache: list[Cache]) -> torch.Tensor:
    """Logits [V] of what follows `new_ids`, which follow the cached ones; float32 on the CPU."""
    tokens_1T = torch.tensor([new_ids], device=model.tok_emb.weight.device)
    with torch.inference_mode(), _without_dropout(model):
        last_11D = model.hidden(tokens_1T, cache)[:, -1:]
        logits_V = model.logits(last_11D)[0, 0].cpu()
    if not torch.isfinite(logits_V).all():
        raise UserError("the model's logits are not finite; use float32 or another checkpoint")
    return logits_V


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


def sample(
    logits_V: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Draw one id: temperature first, then top_k, then top_p of what is left."""
    if temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V.double()
    logits_V = (logits_V - logits_V.max()) / temperature  # the largest is 0: nothing overflows
    if top_k is not None:
        logits_V = keep_top_k(logits_V, top_k)
    if top_p is not None:
        logits_V = keep_top_p(logits_V, top_p)
    return int(torch.multinomial(logits_V.softmax(dim=-1), 1, generator=generator))


def penalize(logits_V: torch.Tensor, ids: Sequence[int], penalty: float) -> torch.Tensor:
    """Positive logits of `ids` divided by `penalty`, negative ones multiplied (CTRL, 2019)."""
    if penalty == 1:
        return logits_V
    index = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits_V.device)
    seen = logits_V[index]
    return logits_V.index_copy(0, index, torch.where(seen > 0, seen / penalty, seen * penalty))


def keep_top_k(logits_V: torch.Tensor, k: int) -> torch.Tensor:
    """All but the k largest at -inf."""
    top = logits_V.topk(min(k, len(logits_V)))
    return torch.full_like(logits_V, -torch.inf).scatter(0, top.indices, top.values)


def keep_top_p(logits_V: torch.Tensor, p: float) -> torch.Tensor:
    """All but the fewest largest whose probabilities sum to p or more at -inf."""
    descending_V, index_V = logits_V.sort(descending=True, stable=True)
    probs_V = descending_V.softmax(dim=-1)
    before_V = probs_V.cumsum(dim=-1) - probs_V
    kept_V = descending_V.masked_fill(before_V >= p, -torch.inf)
    return torch.empty_like(logits_V).scatter(0, index_V, kept_V)
