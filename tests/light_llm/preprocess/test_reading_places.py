"""Reading goes on from any document, without what is before it in the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from light_llm.errors import UserError
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.files import SourceFile
from light_llm.preprocess.rows import RowText

ROWS = [*(f"document {n}" for n in range(30)), "", " ", "é" * 40, *"abcdefg"]


@pytest.fixture(params=["a.jsonl", "crlf.jsonl", "b.jsonl.gz", "c.parquet", "d.csv", "e.json"])
def one_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    rows = [{"text": text} for text in ROWS]
    lines = [json.dumps(row) for row in rows]
    if path.name.endswith(".parquet"):
        pq.write_table(pa.table({"text": ROWS}), path, row_group_size=7)
    elif path.name == "d.csv":
        path.write_text("text\n" + "".join(f'"{text}"\n' for text in ROWS))
    elif path.name == "e.json":
        path.write_text(json.dumps(rows))
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    else:
        end = "\r\n" if path.name == "crlf.jsonl" else "\n"
        path.write_bytes(f"{end}{end}".join(lines).encode())  # with blank lines, and no last end
    return path


def test_reading_goes_on_from_any_document(one_file: Path, tmp_path: Path):
    (tmp_path / "z.txt").write_text("another file")
    files = [SourceFile(path, named=True) for path in (tmp_path / "z.txt", one_file)] * 2
    corpus, places = FileCorpus(files, RowText(("text",)), min_length=2), []
    whole = []
    for document in corpus.documents():
        whole.append(document)
        places.append(json.loads(json.dumps(corpus.here())))
    assert len(whole) == 2 * (1 + len(ROWS) - 9)
    for number, place in enumerate(places, start=1):
        assert list(corpus.documents(place)) == whole[number:]
        assert corpus.skipped.short == 14


def test_what_is_before_a_place_is_not_read_again(tmp_path: Path):
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    pq.write_table(pa.table({"text": ROWS}), tmp_path / "b.parquet", row_group_size=10)
    for path in (lines, tmp_path / "b.parquet"):
        corpus = FileCorpus([SourceFile(path, named=True)], RowText(("text",)))
        documents = corpus.documents()
        for _ in range(22):
            last = next(documents)
        place, rest = corpus.here(), list(documents)
        content = bytearray(path.read_bytes())
        content[4:300] = b"\xff" * 296
        path.write_bytes(content)
        with pytest.raises(UserError):
            list(corpus.documents())
        assert list(corpus.documents(place)) == rest
        assert last.text == "document 21"


def test_a_place_inside_a_line_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    corpus = FileCorpus([SourceFile(tmp_path / "a.jsonl", named=True)], RowText(("text",)))
    next(corpus.documents())
    place = corpus.here()
    assert [each.text for each in corpus.documents(place)] == ["two"]
    for byte in (15, 17, 31, 33, 2**40):
        broken = place | {"at": [0, 1, byte, 1]}
        with pytest.raises(UserError, match="no line begins at byte"):
            list(corpus.documents(broken))
    assert list(corpus.documents(place | {"at": [0, 2, 32, 2]})) == []
