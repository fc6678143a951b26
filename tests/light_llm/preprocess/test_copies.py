"""The copies of a text are found and listed, of any input and however many fit in memory."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from light_llm.preprocess import copies, dedupe
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.dedupe import _copies_in, deduped, find_copies
from light_llm.preprocess.files import SourceFile
from light_llm.preprocess.rows import RowText


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 12), max_size=12), min_size=1, max_size=6), st.data())
def test_any_input_keeps_the_first_of_each_text(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[list[int]], data: st.DataObject
):
    """0 stands for an empty text. Files are read in any order, and from any place on."""
    folder = tmp_path_factory.mktemp("any")
    found = []
    for file, inside in enumerate(numbers):
        path = folder / f"{file}.jsonl"
        path.write_bytes(lines([str(number) if number else "" for number in inside]))
        found.append(SourceFile(path, named=True))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BITS", 1), ("BATCH", 3), ("AT_ONCE", data.draw(st.integers(1, 9)))):
            patch.setattr(dedupe, name, value)
        patch.setattr(copies, "BLOCK", 2)
        whole = FileCorpus(found, RowText(("text",)))
        listed = find_copies(whole, folder / "copies", allow_skipped=True)
        first: dict[int, str] = {}
        for file, inside in enumerate(numbers):
            for line, number in enumerate(inside, start=1):
                if number:
                    first.setdefault(number, f"{folder}/{file}.jsonl:{line}")
        documents = sum(map(bool, itertools.chain(*numbers)))
        assert listed.documents == documents - len(first)
        copies.Copies(folder / "copies", listed).check()
        corpus = deduped(whole, folder, listed)
        assert [document.source for document in corpus] == list(first.values())
        assert corpus.skipped.duplicate == listed.documents
        mixed_up = corpus.reordered(data.draw(st.randoms()))
        assert {document.source for document in mixed_up} == set(first.values())
        place = data.draw(st.integers(0, max(0, len(first) - 1)))
        reading = corpus.documents()
        for _ in range(place):
            next(reading)
        rest = corpus.documents(corpus.here() if place else None)
        assert [document.source for document in rest] == list(first.values())[place:]
        assert corpus.skipped.duplicate == listed.documents


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=80), st.integers(1, 9))
def test_any_hashes_give_the_same_copies_however_many_fit_in_memory(
    tmp_path_factory: pytest.TempPathFactory, hashes: list[tuple[int, int]], at_once: int
):
    """Hashes that are far apart, and such as differ in their last bits alone."""
    folder = tmp_path_factory.mktemp("ranges")
    records = np.zeros(len(hashes), dedupe.HASHED)
    records["high"] = [high << 54 for high, _ in hashes]
    records["low"] = [low for _, low in hashes]
    records["ordinal"] = np.arange(len(hashes))
    records.tofile(folder / "hashes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedupe, "AT_ONCE", at_once)
        found = list(_copies_in(folder / "hashes", folder / "ranges"))
    copies = [number for number, each in enumerate(hashes) if each in hashes[:number]]
    assert sorted(int(number) for places in found for number in places["ordinal"]) == copies
    assert [path.name for path in folder.iterdir()] == ["hashes"]


def test_a_hash_is_read_twice_at_most_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dedupe, "AT_ONCE", 2**12)
    records = np.zeros(2**17, dedupe.HASHED)
    records["high"] = np.random.default_rng(0).integers(2**56, size=len(records))
    records.tofile(tmp_path / "hashes")
    before = _bytes_read()
    assert not list(_copies_in(tmp_path / "hashes", tmp_path / "ranges"))
    assert 2 * records.nbytes <= _bytes_read() - before < 2.5 * records.nbytes


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
