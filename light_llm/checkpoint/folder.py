"""A folder of a Hugging Face model: config.json, and weights in one safetensors file or several.

    DIR/config.json                     the architecture; `conversion/families.py` reads it
    DIR/model.safetensors               the weights, or
    DIR/model.safetensors.index.json    which of the files model-00001-of-00003.safetensors has what
    DIR/tokenizer.json, …               its tokenizer

Where a reader takes a checkpoint's prefix, it takes such a folder too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from conversion.families import our_config
from light_llm.configcheck import validate
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.foreign import some
from light_llm.models.transformer.config import TransformerConfig

CONFIG_JSON, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "char_tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
)
"""A folder with one of these has a tokenizer."""
_OF_A_MODEL = (SINGLE, INDEX, "model-*.safetensors", "pytorch_model*.bin", "adapter_model.*")
_OTHER_HEADS = ("score.weight", "qa_outputs.weight", "v_head.summary.weight")
_PICKLES = ("*.bin", "*.pth", "*.pt")

# What does not change which function the weights are, so a run may choose it.
FREE = {
    "dropout",
    "attention.dropout",
    "ffn.dropout",
    "init_std",
    "residual_scaled_init",
    "gradient_checkpointing",
    "attention.use_flash_attn",
    "attention.document_mask",  # a text alone is attended as without
    "attention.document_end",
    "ffn.activation",
    "ffn.expansion_factor",  # ffn_dim says it
    "attention.variant",  # num_kv_heads says it, but for complex
}


def is_model_folder(path: str | Path) -> bool:
    """Whether a folder has a model of Hugging Face, or a part of one; nothing is checked."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    if any(next(folder.glob(pattern), None) for pattern in _OF_A_MODEL):
        return True
    try:  # a run's folder may hold a config.json too
        config = given.read_json(folder / CONFIG_JSON)
    except UserError:
        return False
    return isinstance(config, dict) and "model_type" in config


def folder_config(folder: Path) -> TransformerConfig:
    """The architecture.

    Raises:
        UserError: there is no config.json, it is damaged, or the model is not ours.
    """
    path = folder / CONFIG_JSON
    if not path.exists():
        if not any((folder / name).exists() for name in (SINGLE, INDEX)):
            raise UserError(f"{folder}: {_what_is_there(folder)}")
        raise UserError(
            f"{path}: the model's config is missing; copy the {CONFIG_JSON} that belongs to the "
            "weights there"
        )
    config = given.read_json(path, what="the model's config")
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return validate(TransformerConfig, our_config(config, str(path)), f"{path}: as our model")


def folder_snapshot(folder: Path) -> Mapping[str, Any]:
    """What a checkpoint's config.json would say: `model`, and `tokenizer_path` if it has one."""
    has_tokenizer = any((folder / name).exists() for name in TOKENIZER_FILES)
    return {
        "model": folder_config(folder).model_dump(),
        "tokenizer_path": str(folder) if has_tokenizer else None,
    }


def weight_files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """(the safetensors files, the file of each key as the index has it; empty without an index).

    Raises:
        UserError: there are none, or the index is damaged or names a file that is not there.
    """
    if (folder / SINGLE).exists():
        return [folder / SINGLE], {}
    path = folder / INDEX
    if not path.exists():
        raise UserError(f"{folder}: {_what_is_there(folder)}")
    index = given.read_json(path, given.LARGE, "the index of the weights")
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(map(given.is_name, places.values())):
        raise UserError(
            f"{path}: weight_map must give the name of a file beside it for each tensor; fetch the "
            "file again"
        )
    files = [folder / name for name in sorted(set(places.values()))]
    if absent := [file.name for file in files if not file.exists()]:
        raise UserError(
            f"{path}: names {', '.join(absent)}, which is not there; fetch what is missing"
        )
    return files, {key: folder / name for key, name in places.items()}


def _what_is_there(folder: Path) -> str:
    """Why the folder has no weights to read, and what to do."""

    def found(*patterns: str) -> str:
        return some(sorted({path.name for pattern in patterns for path in folder.glob(pattern)}))

    if shards := found("model-*.safetensors"):
        return f"has {shards}, but no {INDEX}, which says what belongs together; fetch it too"
    if adapter := found("adapter_model.*"):
        return (
            f"holds an adapter ({adapter}), which is no model of its own; merge it into its base "
            "model with peft (merge_and_unload) and save that with save_pretrained"
        )
    if pickles := found(*_PICKLES):
        return (
            f"its weights are pickles ({pickles}), which are not opened here, since a pickle can "
            "run code; where you trust it, AutoModelForCausalLM.from_pretrained(DIR)."
            "save_pretrained(NEW) of transformers writes them as safetensors"
        )
    if others := found("*.safetensors"):
        return f"has {others}, but neither {SINGLE} nor {INDEX}; rename or fetch the weights"
    return f"holds no weights: neither {SINGLE} nor {INDEX}; fetch them"


def refuse_other_class(keys: Collection[str], folder: Path) -> None:
    """Name the class of transformers that wrote the files, where a list of all keys that differ
    would hide it.

    Raises:
        UserError: they are of a model inside another one, of one without its head, or of one with
            another head.
    """
    name = "embed_tokens.weight"
    before = [key.removesuffix(name) for key in keys if f".{key}".endswith(f".{name}")]
    if before == [""]:
        raise UserError(
            f"{folder}: its keys lack the `model.` before them, as those of a model without its "
            "head (AutoModel); save it as AutoModelForCausalLM"
        )
    if len(before) == 1 and before[0].endswith("model."):
        inside = before[0].removesuffix("model.")
        merge = "merge it with peft (merge_and_unload) and " * (inside == "base_model.model.")
        raise UserError(
            f"{folder}: its keys begin with `{inside}`, as those of a model inside another one; "
            f"{merge}save it as AutoModelForCausalLM"
        )
    if other := [key for key in _OTHER_HEADS if key in keys]:
        raise UserError(
            f"{folder}: has {other[0]}, the head of a model for another task; use a model that "
            "writes text, which has lm_head.weight"
        )


def check_like_folder(model: TransformerConfig, folder: Path) -> None:
    """Compare the `model` of a run's config with the model of a folder.

    Raises:
        UserError: keys that differ, each with the value to set. Dropout and what else leaves the
            function as it is may differ, and `max_seq_len` may be smaller.
    """
    wrong = list(_differences(model, folder_config(folder)))
    if wrong:
        raise UserError(
            f"{folder}: the section `model` of the config is not this model; set\n  "
            + "\n  ".join(wrong)
        )


def _differences(model: TransformerConfig, theirs: TransformerConfig) -> Iterator[str]:
    mine = dict(_flat(model.model_dump())) | {"ffn.ffn_dim": model.ffn_dim}
    for key, value in _flat(theirs.model_dump()):
        if key in FREE and not (key == "attention.variant" and mine[key] == "complex"):
            continue
        if key == "max_seq_len" and mine[key] <= value:
            continue
        if mine[key] != value:
            yield f"model.{key}: {_spelt(value)}  (it is {_spelt(mine[key])})"


def _flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(key with its sections, value); `rope_scaling` is one value."""
    for key, value in section.items():
        if isinstance(value, Mapping) and key != "rope_scaling":
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _spelt(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_spelt(part)}" for key, part in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
