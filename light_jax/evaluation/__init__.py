"""The loss of a checkpoint on data, over every window.

plan       what is to be evaluated: a checkpoint's config, and the windows of each path
on_jax     sums of losses by the evaluation step of training, sharded as training is
on_torch   the same by the PyTorch twin
text       the tokenizer of the data, and how many bytes of text its tokens are
report     the numbers, as data, JSON and text
evaluate   all of it
tasks      instead of that, the tasks of lm-evaluation-harness
"""

from typing import TYPE_CHECKING

from light_llm.lazy import public

if TYPE_CHECKING:
    from light_jax.evaluation.evaluate import evaluate
    from light_jax.evaluation.report import Report, Score

__all__ = ["Report", "Score", "evaluate"]

__getattr__, __dir__ = public(
    __name__,
    {
        "Report": "light_jax.evaluation.report",
        "Score": "light_jax.evaluation.report",
        "evaluate": "light_jax.evaluation.evaluate",
    },
)
