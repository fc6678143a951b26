"""Feed-forward layers. Letters: B batch, T position, D model, F ffn."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jax.typing import DTypeLike

from light_jax.models.layers import Linear, dropout
from light_jax.models.placement import Placement
from light_jax.models.remat import computed_again
from light_llm.models.transformer.config import TransformerConfig

Activation = Callable[[jax.Array], jax.Array]

ACTIVATION: dict[str, Activation] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # erf
    "relu": jax.nn.relu,
}


class GatedFFN(nnx.Module):
    """down(act(gate(x)) · up(x)): swiglu with silu, geglu with gelu (Shazeer 2020)."""

    def __init__(
        self, cfg: TransformerConfig, *, dtype: DTypeLike, placement: Placement, rngs: nnx.Rngs
    ) -> None:
        linear = functools.partial(Linear, bias=cfg.ffn.bias, dtype=dtype, rngs=rngs)
        self.gate_proj = linear(cfg.d_model, cfg.ffn_dim, std=cfg.init_std)
        self.up_proj = linear(cfg.d_model, cfg.ffn_dim, std=cfg.init_std)
        self.down_proj = linear(cfg.ffn_dim, cfg.d_model, std=cfg.residual_init_std)
        self.activation = {"swiglu": "silu", "geglu": "gelu"}[cfg.ffn.variant]
        self.platform = placement.platform
        self.dropout = cfg.ffn.dropout

    def __call__(self, x_BTD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        def down(
            params: tuple[Linear, jax.Array], gate_BTF: jax.Array, key: jax.Array | None
        ) -> jax.Array:
            down_proj, up_BTF = params
            hidden_BTF = ACTIVATION[self.activation](gate_BTF) * up_BTF
            return down_proj(dropout(hidden_BTF, self.dropout, key))

        params = (self.down_proj, self.up_proj(x_BTD))
        return computed_again(down, self.platform)(params, self.gate_proj(x_BTD), key)


class MLP(nnx.Module):
    """fc2(act(fc1(x)))."""

    def __init__(
        self, cfg: TransformerConfig, *, dtype: DTypeLike, placement: Placement, rngs: nnx.Rngs
    ) -> None:
        linear = functools.partial(Linear, bias=cfg.ffn.bias, dtype=dtype, rngs=rngs)
        self.fc1 = linear(cfg.d_model, cfg.ffn_dim, std=cfg.init_std)
        self.fc2 = linear(cfg.ffn_dim, cfg.d_model, std=cfg.residual_init_std)
        self.activation = cfg.ffn.activation
        self.platform = placement.platform
        self.dropout = cfg.ffn.dropout

    def __call__(self, x_BTD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        def down(fc2: Linear, x_BTF: jax.Array, key: jax.Array | None) -> jax.Array:
            return fc2(dropout(ACTIVATION[self.activation](x_BTF), self.dropout, key))

        return computed_again(down, self.platform)(self.fc2, self.fc1(x_BTD), key)


FFN = {"swiglu": GatedFFN, "geglu": GatedFFN, "mlp": MLP}
