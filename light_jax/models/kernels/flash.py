"""Attention that never writes its scores to memory (Dao et al. 2022), where the device has it.

What a kernel lacks is put into its inputs, exactly: alibi as columns of q and k, widths that it
does not take as zeros, kv heads that do not divide over the devices as copies.

Letters: B batch, T query and key, N heads, K kv-heads, H head_dim of q and k, J head_dim of v,
C added columns.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from light_jax.models.kernels import cudnn, splash
from light_jax.models.placement import Placement
from light_llm.models.transformer.mask import Span

Kernel = Literal["splash", "cudnn"]

ALIBI_COLUMNS = 6
MAX_LENGTH = 2**15  # of alibi: up to there float32 sums of slope · s stay exact to 2^-9


def kernel_for(
    placement: Placement,
    *,
    dtype: DTypeLike,
    length: int,
    head_dim: int,
    span: Span,
    alibi: bool,
    documents: bool = False,
) -> Kernel | None:
    """The kernel that computes such attention on these devices, None where there is none.

    Args:
        head_dim: of q and k; that of v is not larger.
        alibi: with a bias that is linear in the distance. A query that sees both directions has
            two slopes, which no column can hold.
        documents: with documents that do not see each other.
    """
    if alibi and (span.right != 0 or dtype != jnp.bfloat16 or length > MAX_LENGTH):
        return None
    if placement.platform == "tpu":
        # float32 means float32 there too, and Mosaic multiplies float32 in bfloat16 passes
        return "splash" if dtype == jnp.bfloat16 else None
    if placement.platform == "gpu" and dtype in (jnp.bfloat16, jnp.float16):
        if documents:
            return None  # jax's function for cuDNN takes them only as a bias [B, N, T, T]
        if length % 2 and span.right != 0:
            return None  # jax refuses an odd length, and padding would be seen
        width = cudnn.width(head_dim + (ALIBI_COLUMNS if alibi else 0))
        return "cudnn" if width <= _widest(placement) else None
    return None


def _widest(placement: Placement) -> int:
    """The largest head_dim that cuDNN takes there; 0 where it is not."""
    assert placement.mesh is not None
    capability = getattr(placement.mesh.devices.flat[0], "compute_capability", "")
    major = capability.partition(".")[0]
    return cudnn.widest(int(major)) if major.isdigit() else 0  # AMD's is a name, such as gfx942


def attend(
    kernel: Kernel,
    placement: Placement,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKJ: jax.Array,
    *,
    scale: float,
    span: Span,
    slopes_N: jax.Array | None = None,
    back_BT: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale · q·k + alibi) · v, [B, T, N, J] in v's dtype, over the placement's devices.

    Each device computes its own rows and heads; nothing is exchanged. `back_BT` is for splash.
    """
    assert placement.mesh is not None
    narrow = v_BTKJ.shape[-1]
    if kernel == "splash":
        q_BTNH, k_BTKH = splash.scaled(q_BTNH, k_BTKH, scale)
        scale = 1.0  # from here on
    if slopes_N is not None:
        q_BTNH, k_BTKH = with_alibi(q_BTNH, k_BTKH, slopes_N / scale)
    on_one_device = functools.partial(
        splash.attend, span=span, interpret=placement.platform == "cpu"
    )
    if kernel == "cudnn":
        width = cudnn.width(q_BTNH.shape[-1])
        q_BTNH, k_BTKH, v_BTKJ = (_widened(x, width) for x in (q_BTNH, k_BTKH, v_BTKJ))
        on_one_device = functools.partial(cudnn.attend, scale=scale, span=span)
    if placement.head_axis is not None:
        copies = _copies(k_BTKH.shape[2], placement.mesh.shape[placement.head_axis])
        k_BTKH, v_BTKJ = (jnp.repeat(x, copies, axis=2) for x in (k_BTKH, v_BTKJ))
    spec = PartitionSpec(placement.batch_axes, None, placement.head_axis, None)
    inputs, specs = [q_BTNH, k_BTKH, v_BTKJ], [spec] * 3
    if back_BT is not None:
        assert kernel == "splash"
        inputs.append(jnp.arange(back_BT.shape[1]) - back_BT)  # where the document begins
        specs.append(PartitionSpec(placement.batch_axes, None))
    out_BTNJ = jax.shard_map(
        on_one_device,
        mesh=placement.mesh,
        in_specs=tuple(specs),
        out_specs=spec,
        check_vma=False,  # Pallas kernels do not say over which axes their results vary
    )(*inputs)
    return out_BTNJ[..., :narrow]


def _copies(num_kv_heads: int, devices: int) -> int:
    """How many copies of each kv head give every device the ones that its query heads read."""
    return math.lcm(num_kv_heads, devices) // num_kv_heads


def _widened(x: jax.Array, width: int) -> jax.Array:
    """`x` with zeros behind its last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def with_alibi(
    q_BTNH: jax.Array, k_BTKH: jax.Array, slopes_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """q and k with columns whose products add slope · s to the score of key s.

    For a causal mask that is alibi: -slope · (t - s) differs from it by a number that all scores of
    a query share, and softmax does not see. A slope is the sum of three bfloat16 numbers (24 bits),
    and a position s two digits to base 256, so that each product is exact.
    """
    B, T, N, _ = q_BTNH.shape
    C = ALIBI_COLUMNS
    parts, rest_N = [], slopes_N.astype(jnp.float32)
    for _ in range(3):
        part_N = splash.rounded(rest_N)
        parts.append(part_N)
        rest_N = rest_N - part_N
    slopes_NC = jnp.stack([256 * part for part in parts] + parts, axis=-1)
    position_T = jnp.arange(T)
    digits_TC = jnp.stack([position_T // 256] * 3 + [position_T % 256] * 3, axis=-1)
    q_columns = jnp.broadcast_to(slopes_NC, (B, T, N, C))
    k_columns = jnp.broadcast_to(digits_TC[:, None], (B, T, k_BTKH.shape[2], C))
    return (
        jnp.concatenate([q_BTNH, q_columns.astype(q_BTNH.dtype)], axis=-1),
        jnp.concatenate([k_BTKH, k_columns.astype(k_BTKH.dtype)], axis=-1),
    )
