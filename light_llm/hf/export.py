"""A checkpoint to a folder that transformers loads, checked before it is there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from conversion.families import across_documents, family_of, hf_config, hf_key
from conversion.mapping import table
from light_llm import __version__
from light_llm.checkpoint.digests import verify
from light_llm.checkpoint.parts import is_weights
from light_llm.checkpoint.reading import Checkpoint, model_config, read_own, steadily
from light_llm.checkpoint.tokenizer import check_vocabulary, chosen_tokenizer
from light_llm.errors import UserError
from light_llm.hf.card import card, figures
from light_llm.hf.check import compare, quietly
from light_llm.hf.configuration import LightLLMConfig
from light_llm.hf.modeling import LightLLMForCausalLM, write_code
from light_llm.hf.place import CONFIG, check_destination, empty, seal, staged
from light_llm.hf.push import check_push, push_folder
from light_llm.hf.tokenizer import (
    OTHER,
    SpecialIds,
    check_tokenizer,
    is_qwens,
    of_characters,
    write_tokenizer,
)
from light_llm.hf.weights import Written, parse_size, write_weights
from light_llm.models.transformer.config import TransformerConfig
from light_llm.tokenizer import CharTokenizer, Tokenizer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Asked:
    """What a caller of `export` asked for, beside the two places."""

    dtype: str
    max_shard_size: int
    tokenizer: str | None
    with_tokenizer: bool


def export(
    prefix: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    push: str | None = None,
    tokenizer: str | None = None,
    with_tokenizer: bool = True,
) -> list[str]:
    """Write the checkpoint `prefix` as the folder `out`, which `AutoModelForCausalLM` and
    `AutoTokenizer` load.

    The folder is there when it is whole and its logits are those of the checkpoint, or not at all.

    Args:
        dtype: of the weights: float32, bfloat16 or float16.
        max_shard_size: of one weights file, such as 5GB.
        push: USER/NAME, to upload the folder to the hub too.
        tokenizer: a path or a name, in the place of the one that the checkpoint's config names.
        with_tokenizer: whether to write a tokenizer, where there is one.

    Returns:
        Lines to tell; the last has the largest difference of the logits.

    Raises:
        UserError: no such checkpoint or a damaged one; `out` is not empty, nor an earlier export;
            a tokenizer that cannot be used; the check failed; the hub cannot be reached.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} must be {', '.join(DTYPES)}")
    asked = Asked(dtype, parse_size(max_shard_size), tokenizer, with_tokenizer)
    place = Path(os.path.abspath(out))
    check_destination(place)
    if push is not None:
        check_push(push)
    read_own(prefix)  # before a folder is made
    with staged(place) as folder:
        lines = steadily(
            lambda: read_own(prefix),
            lambda checkpoint: _write(checkpoint, folder, place.name, asked),
        )
    if push is not None:
        lines.insert(-1, f"uploaded to {push_folder(place, push)}")
    return [f"wrote {place}", *lines]


@dataclass(frozen=True)
class Shape:
    """What a model is in transformers."""

    config: dict[str, Any]
    names: dict[str, str]  # our key -> the one there
    zeros: dict[str, tuple[int, ...]]  # names and shapes of tensors that are there alone
    reason: str | None  # why the class is ours; None for a class of transformers
    as_llama: bool  # a Qwen2 that becomes a Llama for the sake of its tokenizer

    @property
    def class_name(self) -> str:
        return str(self.config["architectures"][0])


def _shape(cfg: TransformerConfig, tokenizer: Tokenizer | None) -> Shape:
    family, foreign = family_of(cfg)
    reason = None if family else f"none has {', '.join(foreign)}"
    shown = cfg
    if as_llama := family == "qwen2" and not is_qwens(tokenizer):
        family, shown = "llama", _with_all_biases(cfg)
    config = hf_config(shown, family) if family else _own_config(cfg)

    def name_of(key: str) -> str:
        return hf_key(key) if family else f"model.{key}"

    names = {entry.key: name_of(entry.key) for entry in table(cfg)}
    zeros = {name_of(e.key): e.shape for e in table(shown) if e.key not in names}
    return Shape(config, names, zeros, reason, as_llama)


def _write(checkpoint: Checkpoint, folder: Path, name: str, asked: Asked) -> list[str]:
    """Write and check everything in `folder`; the lines to tell."""
    empty(folder)
    cfg, dtype = model_config(checkpoint), DTYPES[asked.dtype]
    tokenizer, absent = _tokenizer(checkpoint, cfg, asked)
    verify(checkpoint, is_weights)
    shape = _shape(cfg, tokenizer)
    written = write_weights(
        checkpoint.files.weights, cfg, shape.names, shape.zeros, dtype, asked.max_shard_size, folder
    )
    config = shape.config | {
        "torch_dtype": asked.dtype,
        "transformers_version": transformers.__version__,
    }
    if shape.reason is not None:
        write_code(folder)
    lines = _about(shape, written, asked.dtype)
    if shape.reason is None:
        lines += across_documents(cfg, shape.class_name)
    ids = SpecialIds()
    with quietly():
        _write_json(folder / CONFIG, config)  # AutoTokenizer looks at it
        if tokenizer is None:
            lines.append(f"no tokenizer is written: {absent}")
        else:
            write_tokenizer(tokenizer, folder, cfg.max_seq_len)
            texts, ids = check_tokenizer(tokenizer, folder)
            lines.append(f"tokenizer of {tokenizer.vocab_size:,} ids, the same on {texts} texts")
        special = ids._asdict()  # null too: a class of transformers has defaults of its own
        _write_json(folder / "generation_config.json", special)
        text = card(
            name,
            checkpoint,
            cfg,
            class_name=shape.class_name,
            reason=shape.reason,
            parameters=written.parameters,
            dtype=asked.dtype,
            has_tokenizer=tokenizer is not None,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        _write_json(folder / CONFIG, seal(folder, config | special, _origin(checkpoint)))
        found = compare(checkpoint, folder, dtype, documents=shape.reason is not None)
    lines.append(
        f"logits as the checkpoint's within {found.largest:.2g}; the limit is {found.limit:.2g}"
    )
    return lines


def _about(shape: Shape, written: Written, dtype: str) -> list[str]:
    """The lines that say which class the folder has, and why."""
    lines = [
        f"{shape.class_name}, {written.parameters:,} parameters, {dtype}, "
        f"{written.size / 1e6:,.1f} MB in {written.files} file{'s' * (written.files != 1)}"
    ]
    if shape.reason:
        lines.append(
            f"this class comes with light-llm-jax, since of those in transformers {shape.reason}; "
            "load the folder after `import light_llm.hf`, or with trust_remote_code=True"
        )
    if shape.as_llama:
        lines.append(
            "it is a Llama with a bias of 0 after attention, and not a Qwen2: beside that, "
            "transformers would cut texts by Qwen's rules and not by this tokenizer's"
        )
    return lines


def _with_all_biases(cfg: TransformerConfig) -> TransformerConfig:
    attention = cfg.attention.model_copy(update={"bias": True})
    return cfg.model_copy(update={"attention": attention})


def _own_config(cfg: TransformerConfig) -> dict[str, Any]:
    config = LightLLMConfig(cfg.model_dump()).to_dict()
    return config | {"architectures": [LightLLMForCausalLM.__name__]}


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which checkpoint of which run the folder was made from."""
    return {
        "version": __version__,
        "run": checkpoint.record.run if checkpoint.record else None,
        "checkpoint": checkpoint.files.tag,
        "step": figures(checkpoint).step,
    }


def _tokenizer(
    checkpoint: Checkpoint, cfg: TransformerConfig, asked: Asked
) -> tuple[Tokenizer | None, str]:
    """The tokenizer to write, or None and why there is none.

    Raises:
        UserError: it cannot be loaded, or has more ids than the model.
    """
    if not asked.with_tokenizer:
        return None, "--no-tokenizer"
    try:
        found = chosen_tokenizer(checkpoint, asked.tokenizer)
    except UserError as error:
        raise UserError(f"{error}\n({OTHER})") from None
    if found is None:
        return None, (
            "there is none beside the checkpoint, and tokenizer_path is not set in its config; "
            "name it with --tokenizer PATH"
        )
    check_vocabulary(found, cfg, OTHER)
    if isinstance(found.tokenizer, CharTokenizer):
        try:
            of_characters(found.tokenizer)
        except UserError as error:
            return None, str(error)
    return found.tokenizer, ""


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
