"""Memory of the compiled training step, with and without gradient checkpointing.

    python benchmarks/memory.py [CONFIG]

Compiles the step of a config (default configs/small.yaml) for this machine's devices and asks XLA
what it will take; nothing is trained and no data is read. The [B, T, V] logits, which never exist
whole, are listed to compare.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from light_jax.config import TrainingConfig, load_config
from light_jax.parallel.sharding import make_mesh
from light_jax.reporting.units import size
from light_jax.training.step import init_params, init_state, make_train_step


def analyse(cfg: TrainingConfig) -> tuple[int, int]:
    """Bytes of (state and batch, temporaries) of the compiled step on one device."""
    state = jax.eval_shape(lambda: init_state(cfg, init_params(cfg)))
    shape = (cfg.gradient_accumulation_steps, cfg.batch_size, cfg.seq_len + 1)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    step = jax.jit(make_train_step(cfg, make_mesh(cfg.mesh)), donate_argnums=0)
    memory = step.lower(state, tokens, rate).compile().memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "configs/small.yaml"
    cfg = load_config(path)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; {path} as shipped, {cfg.dtype}")
    logits = 4 * cfg.batch_size * cfg.seq_len * cfg.model.vocab_size
    print(f"float32 logits of a micro-batch would take {size(logits)}")
    temporaries = {}
    for checkpointing in (False, "matmuls", True):
        model = cfg.model.model_copy(update={"gradient_checkpointing": checkpointing})
        held, temporaries[checkpointing] = analyse(cfg.model_copy(update={"model": model}))
        print(
            f"gradient_checkpointing {str(checkpointing).lower():7}  "
            f"state {size(held)}  temporaries {size(temporaries[checkpointing])}"
        )
    print(f"ratio of temporaries {temporaries[True] / temporaries[False]:.2f}")


if __name__ == "__main__":
    main()
