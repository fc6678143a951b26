"""Hugging Face datasets through the real loaders, from folders laid out as on the hub."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, Summary, part, preprocess, stream
from light_llm.preprocess.huggingface import open_hub
from light_llm.preprocess.rows import TEXT_FIELDS, RowText, fields_of
from light_llm.preprocess.stream import Position, chunks

README = """---
configs:
- config_name: en
  data_files: [{split: train, path: en/train*}, {split: test, path: en/test*}]
- config_name: de
  data_files: [{split: train, path: de/*}]
---
"""


def rows(language: str, start: int, stop: int) -> list[dict]:
    texts = [f"{language} document {i} " * (i % 5 + 1) for i in range(start, stop)]
    return [{"url": "u", "content": "" if i % 7 == 3 else t} for i, t in enumerate(texts)]


def wanted(language: str) -> list[str]:
    several = [rows(language, i, i + 100) for i in (0, 100, 200)]
    return [row["content"] for part in several for row in part if row["content"]]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Configurations en, with a split test too, and de; the text is in `content`."""
    root = tmp_path / "data-set"
    for name in ("en", "de"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            table = pa.Table.from_pylist(rows(name, 100 * i, 100 * i + 100))
            pq.write_table(table, root / f"{name}/train-{i}.parquet", row_group_size=30)
    pq.write_table(pa.Table.from_pylist(rows("test", 0, 100)), root / "en/test.parquet")
    (root / "README.md").write_text(README)
    return root


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A dataset of compressed JSON lines with two configurations: gz and zst."""
    root = tmp_path / "lines"
    root.mkdir()
    for i in range(3):
        text = "".join(json.dumps(row) + "\n" for row in rows("gz", 100 * i, 100 * i + 100))
        (root / f"{i}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        with pa.output_stream(root / f"{i}.jsonl.zst", compression="zstd") as stream:
            stream.write(text.replace("gz", "zst").encode())
    (root / "README.md").write_text(
        README.replace("en/train*", "'*.gz'")
        .replace("en/test*", "'*.gz'")
        .replace("de/*", "'*.zst'")
        .replace("name: en", "name: gz")
        .replace("name: de", "name: zst")
    )
    return root


def shard(dataset: Path, output: Path, **options: object) -> Summary:
    given = {"hf_dataset": str(dataset), "output": str(output), "tokenizer": "char", **options}
    return preprocess(PreprocessConfig.model_validate(given))


def test_each_configuration_goes_into_its_subfolder(
    dataset: Path, tmp_path: Path, files: Callable, capsys: pytest.CaptureFixture
):
    summary = shard(dataset, tmp_path / "out", hf_configs=["en", "de"], val_fraction=0.1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "de",
        "en",
        "manifest.json",
        "tokenizer",
    ]
    for name in ("en", "de"):
        texts = [
            row["text"]
            for split in ("train", "val")
            for row in pq.read_table(tmp_path / "out" / name / split).to_pylist()
        ]
        assert sorted(texts) == sorted(wanted(name))
        train, val = summary.parts[name]
        assert train.documents + val.documents == len(texts)
        assert val.documents > 0
    assert "empty documents are skipped" in capsys.readouterr().err
    first = pq.read_table(tmp_path / "out/de/train").to_pylist()[0]
    assert first["source"] == f"{dataset}/de/train:0"
    shard(dataset, tmp_path / "again", hf_configs=["en", "de"], val_fraction=0.1)
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_one_configuration_a_split_and_an_adapter(dataset: Path, tmp_path: Path):
    (tmp_path / "adapter.py").write_text("def adapt(row):\n    return row['content'].upper()\n")
    options = {"hf_config": "en", "hf_split": "test", "val_fraction": 0}
    shard(dataset, tmp_path / "out", **options, adapter_module=str(tmp_path / "adapter.py"))
    texts = pq.read_table(tmp_path / "out/train")["text"].to_pylist()
    assert texts == [r["content"].upper() for r in rows("test", 0, 100) if r["content"]]


@pytest.mark.parametrize("name", ["en", "gz", "zst"])
def test_a_stream_continues_from_any_place(dataset: Path, lines: Path, name: str):
    source = str(dataset if name == "en" else lines)
    config = PreprocessConfig(hf_dataset=source, hf_config=name, output=Path("out"))

    def opened():
        return open_hub(config, RowText(fields_of(None, None)))[0]

    first = opened()
    whole = [d.text for c in chunks(first, None, Position()) for d in c.documents]
    assert whole == wanted(name)
    for passed in (0, 1, 26, 100, len(whole)):
        one = opened()
        places = [one.here() for _ in itertools.islice(one.documents(), passed)]
        place = json.loads(json.dumps(places[-1])) if places else None
        again = opened()
        rest = [d for c in chunks(again, None, Position(place, 0)) for d in c.documents]
        assert [document.text for document in rest] == whole[passed:]
        assert again.skipped == first.skipped
        assert len({document.source for document in rest}) == len(rest)
    mixed = [d.text for c in chunks(opened(), 5, Position()) for d in c.documents]
    assert sorted(mixed) == sorted(whole)
    assert mixed != whole
    assert [d.text for c in chunks(opened(), 5, Position(skip=9)) for d in c.documents] == mixed[9:]


def test_the_known_datasets_have_their_fields():
    names = ("wikimedia/wikipedia", "HuggingFaceFW/fineweb", "HuggingFaceFW/fineweb-edu")
    names += ("allenai/c4", "togethercomputer/RedPajama-Data-1T", "EleutherAI/pile")
    names += ("Skylion007/openwebtext", "bookcorpus")
    assert {fields_of(name, None) for name in names} == {("text",)}
    assert fields_of("tiiuae/falcon-refinedweb", None) == ("content",)
    assert fields_of("togethercomputer/RedPajama-Data-V2", None) == ("raw_content",)
    assert fields_of("some/other", None) == ("text", "content", "body")
    assert fields_of("allenai/c4", "mine") == ("mine",)
    assert all(name == name.lower() for name in TEXT_FIELDS)


def test_what_is_not_there_is_refused(dataset: Path, tmp_path: Path):
    for options, words in {
        "hf_config=it": "cannot be opened with the configuration 'it'",
        "hf_config=en hf_split=val": "its split 'val' cannot be opened",
        "hf_config=en text_column=prose": "no column 'prose'; .* from: url, content",
    }.items():
        given = dict(option.split("=") for option in options.split())
        with pytest.raises(UserError, match=words):
            shard(dataset, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_line_that_installs_it_is_given(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets: pip install datasets"):
        shard(dataset, tmp_path / "out")


def test_a_damaged_file_is_an_error_and_what_was_done_is_continued(
    dataset: Path, tmp_path: Path, files: Callable, monkeypatch: pytest.MonkeyPatch
):
    """As if the network fails in between: the same files are there again later."""
    monkeypatch.setattr(part, "SMALL_CHUNKS", 1)
    monkeypatch.setattr(stream, "CHUNK_DOCUMENTS", 20)
    options: dict[str, object] = {"hf_config": "en", "shard_size": 1000, "workers": 1}
    options["tokenizer_path"] = str(tmp_path / "char")
    shard(dataset, tmp_path / "whole", hf_config="en", save_tokenizer=str(tmp_path / "char"))
    shard(dataset, tmp_path / "whole", **options, overwrite=True)
    last = dataset / "en/train-2.parquet"
    stat, content = last.stat(), last.read_bytes()

    def restore(data: bytes) -> None:
        last.write_bytes(data)
        os.utime(last, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    restore(bytes(len(content)))
    with pytest.raises(UserError, match="cannot be read beyond row 200: "):
        shard(dataset, tmp_path / "out", **options)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".preprocess"]
    restore(content)
    shard(dataset, tmp_path / "out", **options)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
