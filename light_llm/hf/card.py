"""The README.md of an export: what the model is, how it was trained, how it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from light_llm.checkpoint.reading import Checkpoint
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.models.transformer.config import TransformerConfig

METRICS = "metrics.jsonl"
# of the config of the run; paths and names of people's places stay out of what may be published
OF_TRAINING = (
    "seq_len",
    "batch_size",
    "gradient_accumulation_steps",
    "num_steps",
    "optimizer",
    "scheduler",
    "dtype",
    "seed",
)


class Figures(NamedTuple):
    """How far a checkpoint was trained; None where nothing says so."""

    step: int | None
    tokens: int | None
    val_loss: float | None


def figures(checkpoint: Checkpoint) -> Figures:
    """Of the checkpoint's record and config, and of metrics.jsonl beside it."""
    snapshot, tag = checkpoint.snapshot, checkpoint.files.tag
    digits = tag.removeprefix("step")
    step = int(digits) if digits != tag and digits.isdecimal() else None
    if checkpoint.record is not None:
        step = checkpoint.record.step
    if step is None:
        return Figures(None, None, None)
    sizes = [snapshot.get(key) for key in ("seq_len", "batch_size", "gradient_accumulation_steps")]
    tokens: int | None = step
    for size in sizes:
        tokens = tokens * size if isinstance(size, int) and tokens is not None else None
    return Figures(step, tokens, _val_loss(checkpoint.files.directory / METRICS, step))


def _val_loss(path: Path, step: int) -> float | None:
    """The last `val/loss` of a step; None too where the file is not one of ours."""
    if not path.is_file():
        return None
    found = None
    try:
        for line in given.read_text(path, given.LARGE).splitlines():
            if '"val/loss"' in line:
                values = json.loads(line)
                loss = values.get("val/loss") if values.get("step") == step else None
                found = float(loss) if isinstance(loss, int | float) else found
    except (UserError, ValueError, AttributeError, RecursionError):
        return None
    return found


def card(
    name: str,
    checkpoint: Checkpoint,
    cfg: TransformerConfig,
    *,
    class_name: str,
    reason: str | None,
    parameters: int,
    dtype: str,
    has_tokenizer: bool,
) -> str:
    """The text of README.md.

    Args:
        name: of the folder.
        reason: why the class is ours; None for a class of transformers.
    """
    head = yaml.safe_dump(
        {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["light-llm"]},
        sort_keys=False,
    )
    seen = figures(checkpoint)
    rows = {
        "class": f"`{class_name}`",
        "parameters": f"{parameters:,}",
        "weights": dtype,
        "context": f"{cfg.max_seq_len:,} tokens",
        "step": None if seen.step is None else f"{seen.step:,}",
        "tokens seen": None if seen.tokens is None else f"{seen.tokens:,}",
        "validation loss": None if seen.val_loss is None else f"{seen.val_loss:.4f}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)
    title = "".join(c for c in name if c.isprintable()).translate(
        {ord(c): f"\\{c}" for c in "\\`*_[]<>#"}
    )
    parts = [
        f"---\n{head}---",
        f"# {title}",
        "A language model that was trained with light-llm-jax.",
        f"| | |\n|---|---|\n{table}",
        _usage(reason, has_tokenizer),
        "## Model\n\n" + _block(cfg.model_dump(mode="json")),
        "## Training\n\n" + _block(_of_training(checkpoint.snapshot)),
    ]
    return "\n\n".join(parts) + "\n"


def _of_training(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    return {key: snapshot[key] for key in OF_TRAINING if key in snapshot}


def _block(values: Mapping[str, Any]) -> str:
    return "```yaml\n" + yaml.safe_dump(dict(values), sort_keys=False).replace("`", "'") + "```"


def _usage(reason: str | None, has_tokenizer: bool) -> str:
    text = "## Use\n\n"
    if reason is not None:
        text += (
            f"No class of transformers has this architecture ({reason}), so its class comes with "
            "light-llm-jax:\n\n```\npip install 'light-llm-jax[torch]'\n```\n\nInstead of `import "
            "light_llm.hf`, `trust_remote_code=True` in `from_pretrained` does too.\n\n"
        )
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if reason is not None:
        lines.insert(0, "import light_llm.hf  # registers the class\n")
    if not has_tokenizer:
        lines[-1] = "import torch\nfrom transformers import AutoModelForCausalLM"
    lines += ["", 'model = AutoModelForCausalLM.from_pretrained("PATH-OR-NAME")']
    if has_tokenizer:
        lines += [
            'tokenizer = AutoTokenizer.from_pretrained("PATH-OR-NAME")',
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            "output = model.generate(**inputs, max_new_tokens=50)",
            "print(tokenizer.decode(output[0]))",
        ]
    else:
        lines += ["print(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=50))"]
    return text + "```python\n" + "\n".join(lines) + "\n```"
