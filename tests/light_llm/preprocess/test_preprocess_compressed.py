"""Compressed files: the documents are those of the plain file, in the memory of a plain file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from light_llm.errors import UserError
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.files import find_files
from light_llm.preprocess.rows import RowText
from light_llm.preprocess.sources import read_file, read_text
from light_llm.preprocess.stream import Position, chunks

NO_COLUMNS = RowText(())
TEXT = "\ufeffeins\r\nzwei ü 👩‍👩‍👧\n\n  drei" + "vier\n" * 3000


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def in_two_members(data: bytes) -> bytes:
    return gzip.compress(data[:7]) + gzip.compress(data[7:])


def in_two_streams(data: bytes) -> bytes:
    return lzma.compress(data[:7]) + bytes(8) + lzma.compress(data[7:])


PACKED = {
    ".gz": gzip.compress,
    ".GZ": in_two_members,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".XZ": in_two_streams,
}


@pytest.mark.parametrize("ending", PACKED)
def test_the_inner_ending_decides_and_the_documents_are_those_of_the_plain_file(
    tmp_path: Path, ending: str
):
    plain = tmp_path / "a.py"
    plain.write_bytes(TEXT.encode())
    packed = tmp_path / f"a.py{ending}"
    packed.write_bytes(PACKED[ending](TEXT.encode()))
    for piece in (2**20, len(TEXT.encode()), len(TEXT.encode()) - 1, 1000, 7):
        wanted, given = ([*read_text(path, piece)] for path in (plain, packed))
        assert [document.text for document in given] == [document.text for document in wanted]
        assert [document.source.replace(ending, "") for document in given] == [
            document.source for document in wanted
        ]


def test_a_folder_of_all_kinds(tmp_path: Path):
    (tmp_path / "1.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n'))
    (tmp_path / "3.gz").write_bytes(gzip.compress(b"three"))  # no ending is left: text
    (tmp_path / "4.md.zst").write_bytes(zstd(b"four"))
    (tmp_path / "5.tar.gz").write_bytes(gzip.compress(b"a\0\0\0"))
    (tmp_path / "6.png.gz").write_bytes(gzip.compress(b"\x89PNG"))
    files, _ = find_files([str(tmp_path)])
    corpus = FileCorpus(files, RowText(("text",)))
    assert [document.text for document in corpus] == ["one", "two", "three", "four"]
    assert corpus.skipped.binary == 2


WHOLE = gzip.compress(TEXT.encode() * 10)
DAMAGED = {
    "cut.txt.gz": (WHOLE[:-20], "ended before the end-of-stream marker"),
    "crc.txt.gz": (WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:], "CRC check failed"),
    "bits.txt.gz": (WHOLE[:40] + b"\xff" * 60 + WHOLE[100:], "invalid|Error|CRC"),
    "plain.txt.gz": (b"not gzip", "Not a gzipped file"),
    "tail.txt.gz": (WHOLE + b"tail", "Not a gzipped file"),
    "cut.txt.bz2": (bz2.compress(TEXT.encode())[:-9], "ended before the end"),
    "plain.txt.bz2": (b"not bzip2", "Invalid data stream"),
    "cut.txt.xz": (lzma.compress(TEXT.encode())[:-9], "ended before the end"),
    "plain.txt.xz": (b"not xz at all", "format not supported"),
    "greedy.txt.xz": (
        lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**30}]),
        "[Mm]emory usage limit",
    ),
    "cut.txt.zst": (zstd(TEXT.encode() * 10)[:-9], "[Tt]runcated|zstd|ZSTD"),
    "plain.py.zst": (b"not zstd", "zstd|ZSTD|[Uu]nknown frame"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_before_its_first_document(tmp_path: Path, name: str):
    content, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    mend = "compress it again with" if name.startswith("greedy") else "get a whole copy of it"
    rule = rf"{name}: cannot be decompressed: .*({reason}).*; {mend}.*, or leave it"
    with pytest.raises(UserError, match=rule):
        next(read_text(tmp_path / name, piece_chars=100))
    with pytest.raises(UserError, match=rule):
        next(read_file(tmp_path / name, NO_COLUMNS))


def test_a_compressed_parquet_file_is_refused(tmp_path: Path):
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(UserError, match=r"a\.parquet\.gz: a parquet file cannot be read while"):
        next(read_file(tmp_path / "a.parquet.gz", NO_COLUMNS))


@pytest.mark.parametrize("line", [b"a" * 79 + b"\n", b"a" * 80])
def test_a_small_file_that_holds_much_is_read_in_little_memory(tmp_path: Path, line: bytes):
    """64 MiB from 64 kB, with and without ends of lines."""
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(line * (64 * 2**20 // 80)))
    assert path.stat().st_size < 2**18
    tracemalloc.start()
    characters = sum(len(document.text) for document in read_text(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == 64 * 2**20 // 80 * 80
    assert peak < 16 * 2**20


def test_a_place_in_it_is_found_again(tmp_path: Path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"0123456789 abcdef\n" * 200_000))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"the end"))
    corpus = FileCorpus(find_files([str(tmp_path)])[0], NO_COLUMNS)
    whole = [document.text for document in corpus]
    assert len(whole) == 5
    for chunk in [*chunks(corpus, None, Position())]:
        for passed in range(len(chunk.documents)):
            start = chunk.start.behind(passed)
            rest = [d.text for part in chunks(corpus, None, start) for d in part.documents]
            assert rest == whole[len(whole) - len(rest) :]
            assert rest[0] == chunk.documents[passed].text


def test_the_command_makes_the_same_shards_from_them(tmp_path: Path, run: Callable, rows: Callable):
    """With several processes, and a damaged file ends it with one message and nothing written."""
    texts = {f"{n}.txt": f"line {n} of text\n" * 60_000 for n in range(3)}
    for folder, pack in (("plain", bytes), ("packed", gzip.compress)):
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            ending = "" if folder == "plain" else ".gz"
            (tmp_path / folder / f"{name}{ending}").write_bytes(pack(text.encode()))
        done = run(
            *("--input", folder, "--output", f"{folder}-out", "--workers", 2),
            *("--vocab-size", 300, "--shard-size", 200_000),
        )
        assert done.returncode == 0, done.stderr
    written = {
        folder: [(row["text"], row["tokens"]) for row in rows(tmp_path / f"{folder}-out")]
        for folder in ("plain", "packed")
    }
    assert written["packed"] == written["plain"]
    path = tmp_path / "packed/1.txt.gz"
    path.write_bytes(path.read_bytes()[:-9])
    done = run("--input", "packed", "--output", "out", "--tokenizer", "char")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.findall(r"^llm-preprocess: .*1\.txt\.gz: cannot be decompressed", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
