"""Everything that trains (JAX).

    import light_jax

    result = light_jax.train("configs/small.yaml", resume="auto")

`python -m light_jax` is llm-train.
"""

from typing import TYPE_CHECKING

from light_llm.lazy import public

if TYPE_CHECKING:
    from conversion import load_jax
    from light_jax.config import TrainingConfig, load_config
    from light_jax.models.transformer import Transformer
    from light_jax.reporting.findings import Finding, Report
    from light_jax.training.api import Result, check, train
    from light_llm import __version__
    from light_llm.errors import NonFinite, UserError

__all__ = [
    "Finding",
    "NonFinite",
    "Report",
    "Result",
    "TrainingConfig",
    "Transformer",
    "UserError",
    "__version__",
    "check",
    "load_config",
    "load_jax",
    "train",
]

__getattr__, __dir__ = public(
    __name__,
    {
        "Finding": "light_jax.reporting.findings",
        "NonFinite": "light_llm.errors",
        "Report": "light_jax.reporting.findings",
        "Result": "light_jax.training.api",
        "TrainingConfig": "light_jax.config",
        "Transformer": "light_jax.models.transformer",
        "UserError": "light_llm.errors",
        "__version__": "light_llm",
        "check": "light_jax.training.api",
        "load_config": "light_jax.config",
        "load_jax": "light_jax.checkpoint.loading",
        "train": "light_jax.training.api",
    },
)
