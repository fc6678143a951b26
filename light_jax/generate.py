"""Text from a trained model in JAX, token by token: `light_llm.generate`'s twin.

Letters: B batch, T position, V vocab, D model.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from light_jax.models.transformer import Transformer
from light_jax.models.transformer.cache import Cache
from light_llm.sampling import NextIds, Sampling, check_prompts, left_padded, until_done

# Prompts and caches are padded to powers of two from here on, so that few shapes are compiled.
MIN_BUCKET = 32
# top_p looks among this many most probable ids first: sorting a whole vocabulary takes 50 times
# as long, and is left to the rare row whose probabilities are spread more evenly.
TOP_P_FIRST = 1024


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
    everywhere: NamedSharding | None = None,
) -> Iterator[NextIds]:
    """The ids that continue several prompts of any lengths: for each step, one id per prompt.

    The ids are those of `light_llm.generate.generate_batch`, except where logits are equal up to
    rounding. Two functions are compiled, for the prompts and for one more token of each; other
    prompts, lengths within a power of two, seeds, temperatures and values of top_p use them again.

    Args:
        everywhere: the sharding of the ids, where several processes hold the weights: all of them
            make the same call, and each gets all ids.

    Raises:
        UserError: at the call, not at the first id: an empty prompt or one that leaves no room, an
            id outside the vocabulary, or a bidirectional model. Later: logits that are not finite.
    """
    rooms = check_prompts(model.cfg, prompts, sampling)
    width = _bucket(max(map(len, prompts)))
    # by max_tokens and not by the room that is left: the prompts' own lengths change no shape
    size = width + _bucket(min(sampling.max_tokens, model.cfg.max_seq_len))
    tokens_BT, pad_B = left_padded(prompts, width)
    model.new_cache(size, jnp.asarray(pad_B))  # raises where a cache is impossible
    graphdef, params = nnx.split(model, nnx.Param)
    plan = Plan(
        greedy=sampling.temperature == 0,
        top_k=sampling.top_k,
        top_p=sampling.top_p is not None,
        penalize=sampling.repetition_penalty != 1,
    )
    first, following = _compiled(graphdef, size, plan, everywhere)

    def steps() -> Iterator[Sequence[int]]:
        knobs = Knobs(
            np.float32(sampling.temperature or 1),
            np.float32(sampling.top_p or 1),
            np.float32(sampling.repetition_penalty),
        )
        draws = sampling.draws(len(prompts), first_row)
        ids_B, carry = first(params, tokens_BT, pad_B, next(draws), knobs)
        for draw_B in itertools.islice(draws, max(rooms) - 1):
            # the device computes the next ids while these are read and written
            later_B, carry = following(params, carry, ids_B, draw_B, knobs)
            yield np.asarray(ids_B).tolist()
            ids_B = later_B
        yield np.asarray(ids_B).tolist()

    return until_done(steps(), rooms, eos_id)


def moved(model: Transformer, dtype: DTypeLike, device: jax.Device | None = None) -> Transformer:
    """The model with weights and matmuls in `dtype`, on that device: PyTorch's `.to()`."""
    abstract = nnx.eval_shape(lambda: Transformer(model.cfg, dtype=dtype, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x.astype(dtype), nnx.state(model, nnx.Param))
    # committed: computation with it runs there
    return nnx.merge(nnx.graphdef(abstract), jax.device_put(params, device))


class Plan(NamedTuple):
    """What is compiled in: which ways of choosing an id are in use."""

    greedy: bool
    top_k: int | None
    top_p: bool
    penalize: bool


class Knobs(NamedTuple):
    """What may change without compiling again."""

    temperature: Any
    top_p: Any
    penalty: Any


class Carry(NamedTuple):
    """What one step hands to the next."""

    cache: list[Cache]
    seen_BV: jax.Array | None  # which ids a row holds; only where they are penalized


def _bucket(length: int) -> int:
    return max(MIN_BUCKET, 1 << (length - 1).bit_length())


@functools.lru_cache(maxsize=16)
def _compiled(
    graphdef: Any, size: int, plan: Plan, everywhere: NamedSharding | None
) -> tuple[Callable[..., Any], ...]:
    """(the prompts to their first ids, one token of each to the next), jitted."""

    def chosen(model: Transformer, tokens_BT, cache, seen_BV, draw_B, knobs):
        last_B1D = model.hidden(tokens_BT, cache=cache)[:, -1:]
        logits_BV = model.logits(last_B1D)[:, 0]
        ids_B = choose(logits_BV, seen_BV, draw_B, plan, knobs)
        finite_B = jnp.isfinite(logits_BV).all(axis=-1)
        ids_B = jnp.where(finite_B, ids_B, -1)
        if everywhere is not None:
            ids_B = jax.lax.with_sharding_constraint(ids_B, everywhere)
        return ids_B, Carry(cache, seen_BV)

    @jax.jit
    def first(params, tokens_BT, pad_B, draw_B, knobs):
        model = nnx.merge(graphdef, params)
        seen_BV = None
        if plan.penalize:
            B, T = tokens_BT.shape
            seen_BV = jnp.zeros((B, model.cfg.vocab_size), bool)
            real_BT = jnp.arange(T) >= pad_B[:, None]
            seen_BV = seen_BV.at[jnp.arange(B)[:, None], tokens_BT].max(real_BT)
        return chosen(model, tokens_BT, model.new_cache(size, pad_B), seen_BV, draw_B, knobs)

    @functools.partial(jax.jit, donate_argnames="carry")
    def following(params, carry, ids_B, draw_B, knobs):
        cache, seen_BV = carry
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(len(ids_B)), ids_B].set(True)
        return chosen(nnx.merge(graphdef, params), ids_B[:, None], cache, seen_BV, draw_B, knobs)

    return first, following


def choose(
    logits_BV: jax.Array, seen_BV: jax.Array | None, draw_B: jax.Array, plan: Plan, knobs: Knobs
) -> jax.Array:
    """One id for each row [B], by the numbers [B] in [0, 1) of `Sampling.draws`."""
    if seen_BV is not None:
        logits_BV = penalize(logits_BV, seen_BV, knobs.penalty)
    if plan.greedy:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = logits_BV / knobs.temperature
    if plan.top_k is not None:
        logits_BV = keep_top_k(logits_BV, plan.top_k)
    if plan.top_p:
        logits_BV = keep_top_p(logits_BV, knobs.top_p)
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    sums_BV = jnp.cumsum(probs_BV, axis=-1)
    # The first id whose sum exceeds the draw. XLA adds up in a tree, so that by rounding a sum can
    # be less than that before it, or more where nothing was added.
    reached_BV = (sums_BV > draw_B[:, None] * sums_BV[:, -1:]) & (probs_BV > 0)
    return jnp.argmax(reached_BV, axis=-1)


def penalize(logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.Array | float) -> jax.Array:
    """Positive logits of the seen ids divided by `penalty`, negative ones multiplied."""
    lowered_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lowered_BV, logits_BV)


def keep_top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """Set all but the k largest of a row to -inf."""
    top_Bk, index_Bk = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))
    return _scattered(logits_BV, top_Bk, index_Bk)


def keep_top_p(logits_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Set a row to -inf except its fewest largest whose probabilities sum to p or more."""
    V = logits_BV.shape[-1]
    total_B1 = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)

    def among(k: int) -> tuple[jax.Array, jax.Array]:
        descending_Bk, index_Bk = jax.lax.top_k(logits_BV, k)
        probs_Bk = jnp.exp(descending_Bk - total_B1)
        sums_Bk = jnp.cumsum(probs_Bk, axis=-1)
        kept_Bk = jnp.where(sums_Bk - probs_Bk < p, descending_Bk, -jnp.inf)
        return _scattered(logits_BV, kept_Bk, index_Bk), (sums_Bk[:, -1] >= p).all()

    if V <= TOP_P_FIRST:
        return among(V)[0]
    kept_BV, enough = among(TOP_P_FIRST)
    return jax.lax.cond(enough, lambda: kept_BV, lambda: among(V)[0])


def _scattered(logits_BV: jax.Array, values_Bk: jax.Array, index_Bk: jax.Array) -> jax.Array:
    rows_B1 = jnp.arange(len(logits_BV))[:, None]
    return jnp.full_like(logits_BV, -jnp.inf).at[rows_B1, index_Bk].set(values_Bk)
