"""Config files and metrics that anything may have happened to: a message, and no other error."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import ROOT, TINY

from light_jax.config import TrainingConfig, load_config
from light_jax.reporting.metrics import MetricsFile
from light_llm.configcheck import validate
from light_llm.configfile import keys_of
from light_llm.configsource import read_source
from light_llm.errors import UserError
from light_llm.preprocess.config import PreprocessConfig

PREPROCESS = {"input": ["corpus"], "output": "out", "vocab_size": 300, "val_fraction": 0.2}
SHIPPED = [path.read_text() for path in sorted((ROOT / "configs").rglob("*.yaml"))]
KEYS = [*keys_of(TrainingConfig), *keys_of(PreprocessConfig)]
NAMES = sorted({part for key in KEYS for part in key.split(".")} | {"extends", "block_size", ""})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["$HOME", "${X", "$X", "~", "~x", "1:30", "0x1", "1_0", ".nan", "a\0", "\ud7ff"]
    ),
    st.sampled_from(["rope", "mha", "complex", "linear", "llama3", "matmuls", "1e6", "-1", "5"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=5,
)
CHUNKS = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b"\n", b": ", b"- ", b"{", b"[", b"'", b'"', b"&a ", b"*a", b"!!", b"#", b"\t"]
    ),
    st.sampled_from([b"---\n", b"<<: ", b"? ", b"|\n", b"no", b"\xef\xbb\xbf", b"%YAML 9\n"]),
)


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`data` with a value at a dotted path, or at the part of it that `data` has."""
    head, _, rest = path.partition(".")
    inner = data.get(head, {})
    return data | {head: changed(inner, rest, value) if rest and isinstance(inner, dict) else value}


def mutated(data: st.DataObject, text: bytes) -> bytes:
    """Some bytes of a file replaced, doubled or left out."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        end = min(len(text), at + data.draw(st.integers(0, 12)))
        text = text[:at] + data.draw(CHUNKS) + text[end:]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mutated")


def only_messages(read: Any) -> None:
    with warnings.catch_warnings(), contextlib.suppress(UserError):
        warnings.simplefilter("ignore")
        read()


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=4))
def test_values_of_every_kind(folder, changes):
    config: dict[str, Any] = dict(TINY)
    for path, value in changes:
        config = changed(config, path, value)
    (folder / "c.json").write_text(json.dumps(config))
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    only_messages(lambda: load_config(folder / "c.json"))
    only_messages(lambda: load_config(folder / "c.yaml"))


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(list(PreprocessConfig.model_fields)), VALUES, max_size=4))
def test_values_of_a_preprocess_config(folder, changes):
    (folder / "p.json").write_text(json.dumps(PREPROCESS | changes))

    def read() -> None:
        source = read_source(folder / "p.json")
        validate(PreprocessConfig, source.data, source, expand=True)

    only_messages(read)


@settings(max_examples=150)
@given(st.data(), st.sampled_from(SHIPPED), st.booleans())
def test_bytes_of_a_file(folder, data, text, as_base):
    name = "base.yaml" if as_base else "b.yaml"
    (folder / name).write_bytes(mutated(data, text.encode()))
    (folder / "child.yaml").write_text(
        "extends: base.yaml\noptimizer: {lr: 1}\nmodel:\n  ffn: {}\n"
    )
    only_messages(lambda: load_config(folder / ("child.yaml" if as_base else name)))


@settings(max_examples=50)
@given(st.data(), st.sampled_from(SHIPPED))
def test_bytes_of_a_file_that_extends_another(folder, data, text):
    (folder / "whole.yaml").write_text(SHIPPED[0])
    (folder / "own.yaml").write_bytes(mutated(data, b"extends: whole.yaml\n" + text.encode()))
    only_messages(lambda: load_config(folder / "own.yaml"))


LINES = b"".join(
    json.dumps({"step": step, "time": 1.7e9, "train/loss": 4.5, "val/loss": 4.4}).encode() + b"\n"
    for step in range(1, 8)
)


@settings(max_examples=150)
@given(st.data(), VALUES, st.booleans())
def test_metrics_of_a_run_that_is_resumed(folder, data, step, redo):
    """The whole lines up to the step stay as they are."""
    own = json.dumps({"step": step}).encode() + b"\n"
    text = own + mutated(data, LINES)
    path = folder / "metrics.jsonl"
    path.write_bytes(text)
    file = MetricsFile(folder, 5, redo=redo)
    file.write({"step": 6})
    file.close()
    *kept, last = path.read_bytes().splitlines(keepends=True)
    assert json.loads(last) == {"step": 6}
    assert all(line in text and json.loads(line)["step"] <= 5 for line in kept)
