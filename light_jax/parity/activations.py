"""The same tokens through both models, compared stage by stage.

A stage is the output of a module, which has the same name in both. NNX and PyTorch's forward hooks
capture what each call returns; neither model has code for it. Letters: B batch, T position.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from light_jax.models.transformer.model import Transformer

if TYPE_CHECKING:
    from light_llm.models.transformer import Transformer as TorchTransformer

LOGITS = "logits"
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""The bound on a stage's relative difference, by the dtype of the matmuls."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """How far the two models differ in one place."""

    name: str  # a module's, as in PyTorch's named_modules(), or `logits`
    max_abs: float  # largest difference of an element
    relative: float  # max_abs / the largest magnitude of an element in PyTorch

    @property
    def layer(self) -> int | None:
        """The number of its block."""
        section, _, rest = self.name.partition(".")
        return int(rest.partition(".")[0]) if section == "layers" else None

    @property
    def is_main(self) -> bool:
        """Embedding, a block's attention, ffn and output, the final norm and the logits."""
        parts = self.name.split(".")
        inner = parts[2:] if self.layer is not None else parts[1:]
        return not inner or inner in (["attn"], ["ffn"])


def compare(
    params: nnx.State, torch_model: TorchTransformer, tokens_BT: np.ndarray, dtype: str = "float32"
) -> list[Stage]:
    """Every stage of both models, in the order of computation, `logits` last.

    Args:
        params: float32, of the JAX model; the PyTorch model brings its own, and the architecture.
        dtype: of the matmuls, in PyTorch by autocast.
    """
    theirs = torch_activations(torch_model, tokens_BT, dtype)
    ours = jax_activations(params, torch_model.cfg, tokens_BT, dtype)
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return [Stage(name, *difference(ours[name], theirs[name])) for name in theirs]


def first_diverging(stages: Sequence[Stage], tolerance: float) -> Stage | None:
    return next((stage for stage in stages if stage.relative > tolerance), None)


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """(largest absolute, relative) difference; infinite where either is not finite."""
    largest = float(np.max(np.abs(theirs)))
    max_abs = float(np.max(np.abs(ours.astype(np.float32) - theirs)))
    if not math.isfinite(max_abs):
        return math.inf, math.inf
    return max_abs, (max_abs / largest if largest else math.inf) if max_abs else 0.0


def jax_activations(
    params: nnx.State, cfg: Any, tokens_BT: np.ndarray, dtype: str
) -> dict[str, np.ndarray]:
    """Module name -> its output, float32, in one compiled forward pass."""
    # gradient checkpointing changes no number, but nothing inside it can be captured
    cfg = cfg.model_copy(update={"gradient_checkpointing": False})
    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: Transformer(cfg, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    )

    @jax.jit
    def forward(params: nnx.State, tokens_BT: jax.Array) -> tuple[jax.Array, nnx.State]:
        model = nnx.merge(graphdef, params)
        return nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(tokens_BT)

    logits_BTV, captured = forward(params, tokens_BT)
    outputs = {
        ".".join(map(str, path[:-1])): variable.get_value()[0]
        for path, variable in nnx.to_flat_state(captured)
        if path[-1] == "__call__" and len(path) > 1
    }
    outputs[LOGITS] = logits_BTV
    return {name: np.asarray(output, np.float32) for name, output in outputs.items()}


def torch_activations(
    model: TorchTransformer, tokens_BT: np.ndarray, dtype: str
) -> dict[str, np.ndarray]:
    """Module name -> its output, float32, in the order in which they are computed."""
    import torch

    from light_jax.parity.reference import autocast, logits_of

    outputs: dict[str, np.ndarray] = {}

    def record(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            outputs[name] = output.float().numpy().copy()

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(record(name)).remove)
        stack.enter_context(torch.no_grad())
        with autocast(dtype):
            hidden_BTD = model.eval().hidden(torch.from_numpy(tokens_BT).long())
        outputs[LOGITS] = logits_of(model, hidden_BTD, dtype).numpy()
    return outputs
