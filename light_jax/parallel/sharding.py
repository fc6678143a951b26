"""Which device holds what: one mesh, one table of logical axes, one code path.

A single device is a mesh of one. Parameters and optimizer state are sharded over fsdp and tensor,
batches over data and fsdp; what does not divide evenly is replicated.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from light_jax.models.placement import Placement
from light_jax.parallel.devices import devices as all_devices
from light_jax.parallel.tables import Tables, lookup
from light_jax.sections import MeshConfig
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

LOGICAL_TO_MESH = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "model": "fsdp",
}

# Logical axes of a parameter by the last two names of its path; those not listed are replicated.
PARAMETER_AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("tok_emb", "weight"): ("vocab", "model"),
    ("lm_head", "weight"): ("vocab", "model"),
    ("emb", "weight"): (None, "model"),
    **{(q, "kernel"): ("model", "heads") for q in ("q_proj", "q_re", "q_im")},
    **{(q, "bias"): ("heads",) for q in ("q_proj", "q_re", "q_im")},
    **{(kv, "kernel"): ("model", "kv_heads") for kv in ("k_proj", "v_proj", "k_re", "k_im")},
    **{(kv, "bias"): ("kv_heads",) for kv in ("k_proj", "v_proj", "k_re", "k_im")},
    ("out_proj", "kernel"): ("heads", "model"),
    **{(up, "kernel"): ("model", "ffn") for up in ("gate_proj", "up_proj", "fc1")},
    **{(up, "bias"): ("ffn",) for up in ("gate_proj", "up_proj", "fc1")},
    ("down_proj", "kernel"): ("ffn", "model"),
    ("fc2", "kernel"): ("ffn", "model"),
}


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices.

    Raises:
        UserError: the sizes do not multiply to the number of devices; names some that do.
    """
    devices = all_devices() if devices is None else devices
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
    given = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // given if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        asked = ", ".join(f"{axis}: {getattr(cfg, axis)}" for axis in MESH_AXES)
        raise UserError(
            f"mesh={{{asked}}} does not cover the {len(devices)} devices; "
            f"their product must be that number: use {_sizes_that_do(sizes, len(devices))}"
        )
    # An axis may be part of a TPU's own: 8 of 4 x 4 x 4 chips, which jax.make_mesh refuses.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _sizes_that_do(asked: Sequence[int], count: int, num_heads: int = 0) -> str:
    """The meshes of `count` devices that change the fewest and smallest of the sizes asked for.

    Args:
        num_heads: their tensor divides it; 0 is divided by all.
    """
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    meshes = [
        (count // (fsdp * tensor), fsdp, tensor)
        for fsdp in divisors
        for tensor in divisors
        if count % (fsdp * tensor) == 0 and num_heads % tensor == 0
    ]

    def distance(mesh: tuple[int, ...]) -> tuple[int, float]:
        pairs = [(size, max(1, want)) for size, want in zip(mesh, asked, strict=True)]
        return sum(a != b for a, b in pairs), sum(abs(math.log(a / b)) for a, b in pairs)

    nearest = sorted(meshes, key=distance)[:3]
    return " or ".join(
        "{" + ", ".join(f"{axis}: {size}" for axis, size in zip(MESH_AXES, mesh, strict=True)) + "}"
        for mesh in nearest
    )


def batch_shards(mesh: Mesh) -> int:
    """The number of parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    shards = batch_shards(mesh)
    if batch_size % shards:
        lower, upper = batch_size // shards * shards, -(-batch_size // shards) * shards
        raise UserError(
            f"batch_size={batch_size} does not divide over mesh.data · mesh.fsdp = {shards} "
            f"devices; use {f'{lower} or {upper}' if lower else upper}, or another mesh"
        )


def check_heads(cfg: TransformerConfig, mesh: Mesh) -> None:
    """
    Raises:
        UserError: tensor would split a query head; names meshes that do not.
    """
    heads, tensor = cfg.attention.num_heads, mesh.shape["tensor"]
    if heads % tensor:
        sizes = [mesh.shape[axis] for axis in MESH_AXES]
        raise UserError(
            f"mesh.tensor={tensor} does not divide model.attention.num_heads={heads}, and a head "
            f"is never split; use {_sizes_that_do(sizes, mesh.size, heads)}, or another num_heads"
        )


def warn_of_copies(cfg: TransformerConfig, mesh: Mesh) -> None:
    """Warn of what every device of an axis holds whole, since its size does not divide.

    Not of kv heads, which are few: they are meant to be copied.
    """
    units = units_of(cfg)
    for logical, name, what in (
        ("model", "model.d_model", "all weights and their moments"),
        ("ffn", "the ffn's width", "the ffn's weights and their moments"),
        ("vocab", "model.vocab_size", "the token tables and their moments"),
    ):
        axis = LOGICAL_TO_MESH[logical]
        size, count = mesh.shape[axis], units[logical]
        if count % size:
            warnings.warn(
                f"mesh.{axis}={size} does not divide {name}={count}, so {what} are copied along "
                f"{axis} and not divided; use {-(-count // size) * size}, or another mesh",
                stacklevel=2,
            )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    """Rows of a batch are dimension `axis` of the array."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def path_names(path: Sequence[Any]) -> tuple[str, ...]:
    """The names along a pytree path, without the wrapper's own at the end."""
    names = tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    return names[:-1] if names and names[-1] == "value" else names


def units_of(cfg: TransformerConfig) -> dict[str, int]:
    """How many units of each logical axis can be laid on different devices."""
    return {
        "vocab": cfg.vocab_size,
        "model": cfg.d_model,
        "heads": cfg.attention.num_heads,  # a head is never split
        "kv_heads": cfg.attention.num_kv_heads,
        "ffn": cfg.ffn_dim,
    }


def state_shardings(abstract: Any, cfg: TransformerConfig, mesh: Mesh) -> Any:
    """A sharding for each leaf of a tree of parameters, or of what mirrors them (moments).

    A leaf is known by the end of its path, so optimizer state follows its parameter.
    """
    units = units_of(cfg)

    def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
        axes = PARAMETER_AXES.get(path_names(path)[-2:], ())
        if len(axes) != len(leaf.shape):
            return replicated(mesh)
        spec = [_mesh_axis(axis, units, mesh) for axis in axes]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def tables_of(cfg: TransformerConfig, mesh: Mesh) -> Tables:
    """How the token tables of a model of this shape lie on this mesh."""
    units = units_of(cfg)

    def cut(logical: str) -> str | None:
        axis = _mesh_axis(logical, units, mesh)
        return axis if axis is not None and mesh.shape[axis] > 1 else None

    batch_axes = tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)
    return Tables(mesh, batch_axes, rows=cut("vocab"), columns=cut("model"))


def placement_of(cfg: TransformerConfig, mesh: Mesh) -> Placement:
    """How a model of this shape runs on this mesh."""
    heads = _mesh_axis("heads", units_of(cfg), mesh)
    return Placement(
        mesh=mesh,
        batch_axes=BATCH_AXES,
        head_axis=heads,
        gather=functools.partial(_gather_layer, cfg, mesh),
        cut=functools.partial(_cut_positions, mesh),
        lookup=functools.partial(lookup, tables_of(cfg, mesh)),
        scanned=mesh.devices.flat[0].platform != "cpu" or cfg.gradient_checkpointing == "matmuls",
    )


def _gather_layer(cfg: TransformerConfig, mesh: Mesh, params: Any) -> Any:
    """A layer's parameters, whole along fsdp; their gradients are cut again at once."""
    if mesh.shape["fsdp"] == 1:
        return params

    def gather(leaf: jax.Array, stored: NamedSharding) -> jax.Array:
        spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored.spec))
        if spec == stored.spec:
            return leaf
        return _gathered(leaf, NamedSharding(mesh, spec), stored)

    return jax.tree.map(gather, params, state_shardings(params, cfg, mesh))


def _cut_positions(mesh: Mesh, x_BTD: jax.Array) -> jax.Array:
    """Positions cut over tensor, whose devices would all keep the same until the backward pass."""
    tensor = mesh.shape["tensor"]
    if tensor == 1 or x_BTD.shape[1] % tensor:
        return x_BTD
    by_positions = NamedSharding(mesh, PartitionSpec(BATCH_AXES, "tensor"))
    return jax.lax.with_sharding_constraint(x_BTD, by_positions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: jax.Array, whole: NamedSharding, stored: NamedSharding) -> jax.Array:
    """`x` laid out as `whole`, its gradient as `stored`: a reduce-scatter, not an all-reduce."""
    return jax.lax.with_sharding_constraint(x, whole)


_gathered.defvjp(
    lambda x, whole, stored: (jax.lax.with_sharding_constraint(x, whole), None),
    lambda whole, stored, _, g: (jax.lax.with_sharding_constraint(g, stored),),
)


def _mesh_axis(logical: str | None, units: dict[str, int], mesh: Mesh) -> str | None:
    if logical is None:
        return None
    axis = LOGICAL_TO_MESH[logical]
    return axis if units[logical] % mesh.shape[axis] == 0 else None


def local_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """The rows of a global batch that this process's devices hold, sorted."""
    sharding = batch_sharding(mesh, 0)
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in slices if index for row in range(batch_size)[index[0]]})


def to_global(
    local: np.ndarray, rows: Sequence[int], size: int, axis: int, mesh: Mesh
) -> jax.Array:
    """A global array of `size` rows along `axis`, from the `rows` that this process has.

    It may share the memory of `local`, which must not change any more.
    """
    if jax.process_count() == 1:  # of several, device_put would compare what they hold
        return jax.device_put(local, batch_sharding(mesh, axis))
    shape = (*local.shape[:axis], size, *local.shape[axis + 1 :])

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        wanted = np.arange(size)[index[axis]]
        positions = np.searchsorted(rows, wanted)
        return np.take(local, positions, axis=axis)

    return jax.make_array_from_callback(shape, batch_sharding(mesh, axis), part)


def copies(arrays: list[jax.Array]) -> list[jax.Array]:
    """Copies on the same devices, in memory of their own; no program is compiled for them.

    A jitted copy, as jnp.copy is, would be one more program for each shape.
    """
    if any(not array.is_fully_addressable for array in arrays):
        return [jnp.copy(array) for array in arrays]  # device_put would compare the processes'
    return jax.device_put(arrays, [array.sharding for array in arrays], may_alias=False)
