"""Token tables [V, D], cut over devices: each device works on its part, and none holds the whole.

A table is stored with its rows over one axis of the mesh (tensor) and its columns over another
(fsdp). A lookup wants all columns of a few rows, the loss all columns of many rows. Both get them
by exchanging what they compute, which is smaller than the table and its float32 gradient. XLA, left
to itself, gathers the table on every device and sums whole gradients.

Letters: B batch, T position, V vocab, D model, R rows of the head on one device.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from light_jax.models.placement import rows_of


@dataclasses.dataclass(frozen=True)
class Tables:
    """How token tables and batches lie on a mesh. An axis of one device is no axis: None."""

    mesh: Mesh
    batch_axes: tuple[str, ...]
    rows: str | None
    columns: str | None
    """Also one of `batch_axes`."""

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(self.rows, self.columns)

    @property
    def batch_spec(self) -> PartitionSpec:
        return PartitionSpec(self.batch_axes)

    @property
    def summed_axes(self) -> tuple[str, ...]:
        """The batch's axes over which each device has a gradient of its own for the same rows."""
        return tuple(axis for axis in self.batch_axes if axis != self.columns)

    def size(self, axis: str | None) -> int:
        return 1 if axis is None else self.mesh.shape[axis]


def lookup(tables: Tables, table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Rows of the table by token, [B, T, D] in float32 (they start the residual stream)."""
    return jax.shard_map(
        functools.partial(_lookup, tables),
        mesh=tables.mesh,
        in_specs=(tables.spec, tables.batch_spec),
        out_specs=tables.batch_spec,
    )(table_VD, tokens_BT)


def _lookup(tables: Tables, table: jax.Array, tokens: jax.Array) -> jax.Array:
    tokens = gathered(tokens, tables.columns)
    if tables.rows is None:
        x = rows_of(table, tokens)
    else:
        row = tokens - jax.lax.axis_index(tables.rows) * table.shape[0]
        is_here = (row >= 0) & (row < table.shape[0])
        x = jnp.where(is_here[..., None], rows_of(table, jnp.where(is_here, row, 0)), 0.0)
    if tables.columns is not None:  # my columns of all rows -> all columns of my rows
        x = jax.lax.all_to_all(x, tables.columns, split_axis=0, concat_axis=x.ndim - 1, tiled=True)
    return x if tables.rows is None else jax.lax.psum(x, tables.rows)


def gathered(x: jax.Array, axis: str | None) -> jax.Array:
    """The rows of all devices along an axis."""
    return x if axis is None else jax.lax.all_gather(x, axis, axis=0, tiled=True)


def head_of_device(tables: Tables, head: jax.Array, row_multiple: int) -> jax.Array:
    """This device's rows of the head with all columns [R, D], from its part as it is stored.

    Zeros are added, so that R is a multiple of `row_multiple`; `rows_of_device` tells them apart.
    """
    columns = tables.size(tables.columns)
    head = jnp.pad(head, ((0, -head.shape[0] % (columns * row_multiple)), (0, 0)))
    if tables.columns is None:
        return head
    return jax.lax.all_to_all(head, tables.columns, split_axis=0, concat_axis=1, tiled=True)


def rows_of_device(tables: Tables, num_rows: int, stored_rows: int) -> jax.Array:
    """The token of each of the R = `num_rows` rows of `head_of_device`, -1 for one of the zeros.

    Args:
        stored_rows: of the part that this device stores.
    """
    row_R = jnp.arange(num_rows)
    if tables.columns is not None:
        row_R += jax.lax.axis_index(tables.columns) * num_rows
    first = 0 if tables.rows is None else jax.lax.axis_index(tables.rows) * stored_rows
    return jnp.where(row_R < stored_rows, first + row_R, -1)


def as_stored(tables: Tables, head_RD: jax.Array, stored_rows: int) -> jax.Array:
    """The inverse of `head_of_device`."""
    if tables.columns is not None:
        head_RD = jax.lax.all_to_all(
            head_RD, tables.columns, split_axis=1, concat_axis=0, tiled=True
        )
    return head_RD[:stored_rows]


def summed(x: jax.Array, *axes: str | None) -> jax.Array:
    """The sum over the devices of these axes, those that are None left out."""
    there = tuple(axis for axis in axes if axis is not None)
    return jax.lax.psum(x, there) if there else x


def largest(x: jax.Array, *axes: str | None) -> jax.Array:
    there = tuple(axis for axis in axes if axis is not None)
    return jax.lax.pmax(x, there) if there else x
