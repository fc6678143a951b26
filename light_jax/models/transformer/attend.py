"""The attention kernel: the fastest one that the device and the variant allow.

Letters: B batch, T query, S key, R row of a cache, N heads, K kv-heads, G = N/K, H head_dim,
X queries of all heads that share a kv head.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from light_jax.models.kernels import flash
from light_jax.models.layers import dropout, einsum_float32, matmul_precision
from light_jax.models.placement import ANYWHERE, Placement
from light_jax.models.remat import after
from light_llm.models.transformer.mask import Span

# Queries are taken in blocks. Few, since each is compiled separately; and none so small that its
# matmuls leave part of a matrix unit idle (a TPU's takes 128 rows).
MIN_BLOCK, MAX_BLOCKS = 128, 8


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    scale: float,
    span: Span,
    placement: Placement = ANYWHERE,
    slopes_N: jax.Array | None = None,
    back_BT: jax.Array | None = None,
    fused: bool = True,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale · q·k + alibi) · v for self-attention (T = S), returned in v's dtype.

    Scores and softmax are float32. v's head_dim may differ from q's and k's. No query sees further
    back than `back_BT`, or ahead to one that does not see back to it: to another document's, or to
    padding at the start of a row.

    Args:
        fused: whether a kernel of the device may compute it.
    """
    plain = fused and (key is None or dropout_rate == 0.0)
    kernel = flash.kernel_for(
        placement,
        dtype=q_BTNH.dtype,
        length=q_BTNH.shape[1],
        head_dim=q_BTNH.shape[-1],
        span=span,
        alibi=slopes_N is not None,
        documents=back_BT is not None,
    )
    if plain and kernel is not None:
        run = functools.partial(flash.attend, kernel, placement, scale=scale, span=span)
        return run(q_BTNH, k_BSKH, v_BSKH, slopes_N=slopes_N, back_BT=back_BT)
    return _attend_in_blocks(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=scale,
        span=span,
        slopes_N=slopes_N,
        back_BT=back_BT,
        dropout_rate=dropout_rate,
        key=key,
        waits=placement.platform == "cpu",
    )


def attend_one(
    q_B1NH: jax.Array,
    k_BKRH: jax.Array,
    v_BKRH: jax.Array,
    *,
    scale: float,
    back_R: jax.Array,
    hidden_BR: jax.Array,
    slopes_N: jax.Array | None = None,
) -> jax.Array:
    """`attend` for one query, which sees all rows of a cache but the hidden ones; [B, 1, N, H].

    Args:
        back_R: how many positions before the query each row lies.
    """
    B, _, N, H = q_B1NH.shape
    K = k_BKRH.shape[1]
    scores_BKGR = _scores(q_B1NH.reshape(B, K, N // K, H), k_BKRH) * scale
    if slopes_N is not None:
        scores_BKGR -= slopes_N.reshape(K, N // K, 1) * back_R.astype(jnp.float32)
    scores_BKGR = jnp.where(hidden_BR[:, None, None], -jnp.inf, scores_BKGR)
    probs_BKGR = jax.nn.softmax(scores_BKGR, axis=-1).astype(v_BKRH.dtype)
    out_BKGH = jnp.einsum(
        "bkgr,bkrh->bkgh", probs_BKGR, v_BKRH, precision=matmul_precision(q_B1NH.dtype)
    )
    return out_BKGH.reshape(B, 1, N, -1)


@jax.custom_vjp
def _scores(q_BKXH: jax.Array, k_BKSH: jax.Array) -> jax.Array:
    """q·k [B, K, X, S] in float32. Left to itself, the backward pass of a float32 result would
    multiply float32 by 16-bit arrays; here it takes 16 bits like every other matmul."""
    return einsum_float32("bkxh,bksh->bkxs", q_BKXH, k_BKSH)


def _scores_forward(
    q_BKXH: jax.Array, k_BKSH: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _scores(q_BKXH, k_BKSH), (q_BKXH, k_BKSH)


def _scores_backward(
    residuals: tuple[jax.Array, jax.Array], grad_BKXS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    q_BKXH, k_BKSH = residuals
    precision = matmul_precision(q_BKXH.dtype)
    grad_BKXS = grad_BKXS.astype(q_BKXH.dtype)
    return (
        jnp.einsum("bkxs,bksh->bkxh", grad_BKXS, k_BKSH, precision=precision),
        jnp.einsum("bkxs,bkxh->bksh", grad_BKXS, q_BKXH, precision=precision),
    )


_scores.defvjp(_scores_forward, _scores_backward)


@dataclasses.dataclass(frozen=True)
class _Block:
    """A block of queries: which keys each of them sees, and how its scores are scaled."""

    queries: range
    keys: range
    span: Span
    scale: float
    waits: bool
    """On a CPU XLA would else keep the scores: those of both passes are one expression to it."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(
    block: _Block,
    q_BKXH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    slopes_N: jax.Array | None,
    back_BT: jax.Array | None,
) -> jax.Array:
    """softmax(scores) · v in v's dtype; scores and softmax are float32.

    The backward pass computes the scores again and keeps only the result and a number for each
    query (Dao et al. 2022, FlashAttention): kept scores would be most of a long context's memory.
    """
    return _average_forward(block, q_BKXH, k_BKSH, v_BKSH, slopes_N, back_BT)[0]


def _average_forward(
    block: _Block,
    q_BKXH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    slopes_N: jax.Array | None,
    back_BT: jax.Array | None,
) -> tuple[jax.Array, Any]:
    scores_BKXS = _block_scores(block, q_BKXH, k_BKSH, slopes_N, back_BT)
    max_BKX1 = jnp.max(scores_BKXS, axis=-1, keepdims=True)
    weights_BKXS = jnp.exp(scores_BKXS - max_BKX1)
    sum_BKX1 = jnp.sum(weights_BKXS, axis=-1, keepdims=True)
    # The sum divides the result and not each weight: two passes over [B, K, X, S] less.
    out_BKXH = einsum_float32("bkxs,bksh->bkxh", weights_BKXS.astype(v_BKSH.dtype), v_BKSH)
    out_BKXH = (out_BKXH / sum_BKX1).astype(v_BKSH.dtype)
    kept = (q_BKXH, k_BKSH, v_BKSH, slopes_N, back_BT, out_BKXH, max_BKX1 + jnp.log(sum_BKX1))
    return out_BKXH, kept


def _average_backward(block: _Block, kept: Any, grad_BKXH: jax.Array) -> tuple[Any, ...]:
    q_BKXH, k_BKSH, v_BKSH, slopes_N, back_BT, out_BKXH, log_sum_BKX1 = kept
    if block.waits:
        q_BKXH = after(q_BKXH, grad_BKXH)
    scores_BKXS, pull_back = jax.vjp(
        lambda q, k: _block_scores(block, q, k, slopes_N, back_BT), q_BKXH, k_BKSH
    )
    weights_BKXS = jnp.exp(scores_BKXS - log_sum_BKX1)
    products_BKXH = grad_BKXH.astype(jnp.float32) * out_BKXH.astype(jnp.float32)
    mean_BKX1 = jnp.sum(products_BKXH, axis=-1, keepdims=True)
    grad_weights_BKXS = einsum_float32("bkxh,bksh->bkxs", grad_BKXH, v_BKSH)
    grad_q_BKXH, grad_k_BKSH = pull_back(weights_BKXS * (grad_weights_BKXS - mean_BKX1))
    grad_v_BKSH = einsum_float32("bkxs,bkxh->bksh", weights_BKXS.astype(v_BKSH.dtype), grad_BKXH)
    return grad_q_BKXH, grad_k_BKSH, grad_v_BKSH.astype(v_BKSH.dtype), None, None


_average.defvjp(_average_forward, _average_backward)


def _block_scores(
    block: _Block,
    q_BKXH: jax.Array,
    k_BKSH: jax.Array,
    slopes_N: jax.Array | None,
    back_BT: jax.Array | None,
) -> jax.Array:
    """The scaled scores [B, K, X, S] of a block with alibi's bias, -inf where a key is not seen."""
    scores_BKXS = _scores(q_BKXH, k_BKSH) * block.scale
    B, K, X, S = scores_BKXS.shape
    T = len(block.queries)
    scores_BKGTS = scores_BKXS.reshape(B, K, X // T, T, S)
    scores_BKGTS = _masked(scores_BKGTS, block.queries, block.keys, block.span, slopes_N, back_BT)
    return scores_BKGTS.reshape(B, K, X, S)


def _attend_in_blocks(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    scale: float,
    span: Span,
    slopes_N: jax.Array | None,
    back_BT: jax.Array | None,
    dropout_rate: float,
    key: jax.Array | None,
    waits: bool,
) -> jax.Array:
    """`attend` in blocks of queries, each against the keys that any of them may see.

    The masked part of the scores is thus mostly skipped: eight blocks compute 9/16 of a causal
    mask's square.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    G = N // K
    # The G query heads of a kv head lie side by side, so that a block is one matmul per kv head.
    q_BKGTH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    precision = matmul_precision(q_BTNH.dtype)
    block = max(MIN_BLOCK, -(-T // MAX_BLOCKS))
    outs = []
    for start in range(0, T, block):  # unrolled: blocks differ in how many keys they see
        stop = min(start + block, T)
        first = 0 if span.left is None else max(0, start - span.left)
        last = T if span.right is None else min(T, stop + span.right)
        q_BKXH = q_BKGTH[:, :, :, start:stop].reshape(B, K, G * (stop - start), H)
        k_visible, v_visible = k_BKSH[:, :, first:last], v_BKSH[:, :, first:last]
        queries = _Block(range(start, stop), range(first, last), span, scale, waits)
        if key is None or dropout_rate == 0.0:
            out_BKXH = _average(queries, q_BKXH, k_visible, v_visible, slopes_N, back_BT)
        else:
            scores_BKXS = _block_scores(queries, q_BKXH, k_visible, slopes_N, back_BT)
            probs_BKXS = jax.nn.softmax(scores_BKXS, axis=-1).astype(v_BSKH.dtype)
            # with one key for all, blocks of one shape would drop the same elements
            probs_BKXS = dropout(probs_BKXS, dropout_rate, jax.random.fold_in(key, start))
            out_BKXH = jnp.einsum("bkxs,bksh->bkxh", probs_BKXS, v_visible, precision=precision)
        outs.append(out_BKXH.reshape(B, K, G, stop - start, -1))
    out_BKGTH = jnp.concatenate(outs, axis=3)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)


def _masked(
    scores_BKGTS: jax.Array,
    queries: range,
    keys: range,
    span: Span,
    slopes_N: jax.Array | None,
    back_BT: jax.Array | None,
) -> jax.Array:
    """The scores with alibi's bias, and -inf where a query does not see a key.

    Args:
        queries, keys: the positions of the T queries and of the S keys.
    """
    query_T1 = jnp.arange(queries.start, queries.stop)[:, None]
    key_S = jnp.arange(keys.start, keys.stop)
    distance_TS = query_T1 - key_S
    if slopes_N is not None:
        slopes_KG11 = slopes_N.reshape(*scores_BKGTS.shape[1:3], 1, 1)
        # in float32: bfloat16 cannot hold most distances above 256
        scores_BKGTS -= slopes_KG11 * jnp.abs(distance_TS).astype(jnp.float32)
    if span.left is not None:
        scores_BKGTS = jnp.where(distance_TS > span.left, -jnp.inf, scores_BKGTS)
    if span.right is not None:
        scores_BKGTS = jnp.where(distance_TS < -span.right, -jnp.inf, scores_BKGTS)
    if back_BT is not None:
        hidden_BTS = distance_TS > back_BT[:, queries.start : queries.stop, None]
        if span.right != 0:
            hidden_BTS |= -distance_TS > back_BT[:, None, keys.start : keys.stop]
        scores_BKGTS = jnp.where(hidden_BTS[:, None, None], -jnp.inf, scores_BKGTS)
    return scores_BKGTS
