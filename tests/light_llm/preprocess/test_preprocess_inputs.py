"""Inputs: every container gives the same documents, in an order that never changes."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import itertools
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from light_llm.errors import UserError
from light_llm.preprocess import tables
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.files import find_files
from light_llm.preprocess.opening import printable
from light_llm.preprocess.rows import RowText, fields_of, load_adapter
from light_llm.preprocess.sources import read_text
from light_llm.preprocess.stream import Position, chunks

TEXTS = ["one", "zwei\r\nzeilen\n", "三 👩‍👩‍👧", " four "]
LINES = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)).encode()


def corpus_of(*inputs: object, text_column: str | None = None, min_length: int = 1) -> FileCorpus:
    files, _ = find_files([str(path) for path in inputs])
    return FileCorpus(files, RowText(fields_of(None, text_column)), min_length)


def texts(*inputs: object, text_column: str | None = None) -> list[str]:
    return [document.text for document in corpus_of(*inputs, text_column=text_column)]


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def names(root: Path, *inputs: str, **options: object) -> list[str]:
    files, _ = find_files([str(root / path) for path in inputs], **options)  # type: ignore[arg-type]
    return [file.path.relative_to(root).as_posix() for file in files]


def test_every_container_gives_the_same_documents(tmp_path: Path, write_parquet: Callable):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES[:20]) + gzip.compress(LINES[20:]))
    with pa.output_stream(tmp_path / "a.jsonl.zst", compression="zstd") as stream:
        stream.write(LINES)
    write_parquet(tmp_path / "a.parquet", TEXTS)
    pq.write_table(
        pa.table({"text": pa.array(TEXTS, pa.large_string())}), tmp_path / "large.parquet"
    )
    for path in ("folder", "folder/*.txt", "fol*", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        assert texts(tmp_path / path) == TEXTS, path
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    with (tmp_path / "a.tsv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, "excel-tab").writerows([["text"], *([text] for text in TEXTS)])
    (tmp_path / "b.csv.xz").write_bytes(lzma.compress((tmp_path / "a.csv").read_bytes()))
    (tmp_path / "a.ndjson").write_bytes(LINES)
    (tmp_path / "a.json").write_bytes(b"\n" + LINES)
    (tmp_path / "b.json.bz2").write_bytes(bz2.compress(LINES))
    for path in ("a.csv", "a.tsv", "b.csv.xz", "a.ndjson", "a.json", "b.json.bz2"):
        assert texts(tmp_path / path) == TEXTS, path
    several = {"text.words": [1] * len(TEXTS), "text": pa.array(TEXTS).dictionary_encode()}
    pq.write_table(pa.table(several), tmp_path / "categories.parquet")
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.string_view())}), tmp_path / "view.parquet")
    for path in ("a.parquet", "large.parquet", "a.par*", "categories.parquet", "view.parquet"):
        assert texts(tmp_path / path) == TEXTS, path


def test_sources_say_where_a_document_came_from(tmp_path: Path, write_parquet: Callable):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n\n{"text": "y"}\n')
    write_parquet(tmp_path / "c.parquet", ["x", "y"])
    sources = [document.source for document in corpus_of(tmp_path)]
    wanted = ["a.txt", "b.jsonl:1", "b.jsonl:3", "c.parquet:0", "c.parquet:1"]
    assert sources == [f"{tmp_path}/{name}" for name in wanted]


def test_inputs_keep_their_order_and_each_is_sorted(tmp_path: Path):
    tree(tmp_path, "b/2", "b/1", "b/10", "b/1x/z", "a/9")
    assert names(tmp_path, "b", "a") == ["b/1", "b/10", "b/1x/z", "b/2", "a/9"]


def test_a_file_that_is_given_twice_is_taken_once(tmp_path: Path):
    tree(tmp_path, "a/1", "a/2")
    (tmp_path / "link").symlink_to(tmp_path / "a/1")
    files, duplicates = find_files([str(tmp_path / name) for name in ("a", "a/1", "a/*", "link")])
    assert [file.path.name for file in files] == ["1", "2"]
    assert duplicates == 4


def test_hidden_files_and_the_output_are_left_out(tmp_path: Path):
    tree(tmp_path, "a.txt", ".env", ".git/config", "out/train/shard_00000.parquet", "out/b.txt")
    own = [tmp_path / "out/train"]
    assert names(tmp_path, ".", without=own) == ["a.txt", "out/b.txt"]
    assert names(tmp_path, "**/*", without=own) == ["a.txt", "out/b.txt"]


def test_links_to_folders_are_not_entered(tmp_path: Path):
    tree(tmp_path, "a/b.txt", "c/d.txt")
    for name, target in {"a/loop": "a", "a/more": ".", "link": "c"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    assert names(tmp_path, ".") == ["a/b.txt", "c/d.txt"]
    assert names(tmp_path, "**/*.txt") == names(tmp_path, "*/*.txt") == ["a/b.txt", "c/d.txt"]
    assert names(tmp_path, "**") == names(tmp_path, "*") == ["a/b.txt", "c/d.txt"]
    assert names(tmp_path, "link") == ["link/d.txt"]  # it is named


def test_include_and_exclude(tmp_path: Path):
    tree(tmp_path, "x.py", "x.md", "lib/y.py", "lib/test/z.py", "lib/tests.py", "lib/sub/test/w.py")

    def chosen(root: str, include: str = "", exclude: str = "") -> list[str]:
        return names(tmp_path, root, include=include.split(), exclude=exclude.split())

    assert chosen(".", "*.md") == ["x.md"]
    assert chosen(".", "*.md x.py") == ["x.md", "x.py"]
    assert chosen(".", "*.py", "test*") == ["lib/y.py", "x.py"]
    assert chosen(".", "*.py", "lib/test") == [
        "lib/sub/test/w.py",
        "lib/tests.py",
        "lib/y.py",
        "x.py",
    ]
    assert chosen(".", "lib/*.py", "*/test/*") == ["lib/tests.py", "lib/y.py"]
    assert chosen(".", "", "lib") == ["x.md", "x.py"]
    assert chosen("**/*.py", "", "test") == ["lib/tests.py", "lib/y.py", "x.py"]
    assert chosen("lib/y.py", "*.md", "y.py") == ["lib/y.py"]  # named, so taken


def test_a_path_with_glob_characters_is_a_path_first(tmp_path: Path):
    tree(tmp_path, "data[1]/a.txt", "data1/b.txt")
    assert names(tmp_path, "data[1]") == ["data[1]/a.txt"]


def test_binary_files_are_skipped_in_folders_and_refused_by_name(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "b.bin").write_bytes(b"valid utf-8, but\0 not text")
    (tmp_path / "c.txt").write_text("text")
    corpus = corpus_of(tmp_path)
    for _ in range(2):  # each reading counts from zero
        assert [document.text for document in corpus] == ["text"]
        assert [Path(path).name for path in corpus.skipped.examples] == ["a.bin", "b.bin"]
    for name in ("a.bin", "b.bin"):
        with pytest.raises(UserError, match=f"{name}: is not UTF-8 text"):
            texts(tmp_path / name)


def test_empty_and_short_documents_are_counted(tmp_path: Path, write_parquet: Callable):
    write_parquet(tmp_path / "a.parquet", ["", None, " \n", "ab", "abc", "世界!"])
    (tmp_path / "b.jsonl").write_text('{"text": null}\n{"text": "xyz"}\n')
    (tmp_path / "c.txt").write_text("")
    corpus = corpus_of(tmp_path, min_length=3)
    assert [document.text for document in corpus] == ["abc", "世界!", "xyz"]
    assert (corpus.skipped.empty, corpus.skipped.short) == (5, 1)


def test_without_a_column_the_usual_ones_are_tried(tmp_path: Path, write_parquet: Callable):
    for column in ("text", "content", "body"):
        write_parquet(tmp_path / "a.parquet", [column], column=column)
        (tmp_path / "b.jsonl").write_text(json.dumps({"body": "no", column: column}))
        assert texts(tmp_path) == [column, column]


def test_an_adapter_makes_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    source = "def adapt(row):\n    return None if row['n'] == 1 else f\"{row['a']} {row['b']}\"\n"
    (tmp_path / "my_adapter.py").write_text(source)
    rows = [{"n": n, "a": f"a{n}", "b": f"b{n}"} for n in range(3)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    for module in ("my_adapter", "my_adapter.py", str(tmp_path / "my_adapter.py")):
        adapt, digest = load_adapter(module)
        assert digest == hashlib.sha256(source.encode()).hexdigest()
        for name in ("x.jsonl", "x.parquet"):
            corpus = FileCorpus(find_files([name])[0], RowText((), adapt))
            assert [document.text for document in corpus] == ["a0 b0", "a2 b2"]
    (tmp_path / "x.jsonl").write_text('{"n": 7}')
    with pytest.raises(UserError, match=r"x\.jsonl:1: the adapter raised KeyError: 'a'"):
        list(FileCorpus(find_files(["x.jsonl"])[0], RowText((), adapt)))
    for module, text in {"none": "", "broken.py": "1 / 0", "empty.py": ""}.items():
        (tmp_path / "broken.py").write_text("1 / 0")
        (tmp_path / "empty.py").write_text(text)
        with pytest.raises(UserError, match=f"adapter_module='{module}': (cannot be|has no fun)"):
            load_adapter(module)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_corpus_continues_from_any_place(
    tmp_path: Path, write_parquet: Callable, seed: int | None
):
    """Chunks from any position on are the rest of the documents, and count what was skipped."""
    write_parquet(tmp_path / "a.parquet", ["", "one", None, "two", "three"])
    (tmp_path / "b.jsonl").write_text('{"text": "four"}\n{"text": " "}\n{"text": "five"}\n')
    (tmp_path / "c.txt").write_text("six")
    (tmp_path / "d.bin").write_bytes(b"\xff")
    corpus = corpus_of(tmp_path)
    (chunk,) = chunks(corpus, seed, Position())
    whole = [document.text for document in chunk.documents]
    assert len(whole) == 6
    skipped = corpus.skipped
    for passed in range(6):
        again = corpus_of(tmp_path)
        documents = again.documents()
        places = [again.here()] + [again.here() for _ in itertools.islice(documents, passed)]
        start = Position(json.loads(json.dumps(places[-1])))
        for position in [Position().behind(passed), *([start] if seed is None else [])]:
            rest = [d.text for c in chunks(again, seed, position) for d in c.documents]
            assert rest == whole[passed:]
            assert again.skipped == skipped


def test_a_sample_is_from_all_files_and_no_larger_than_asked(tmp_path: Path):
    for number in range(100):
        lines = [json.dumps({"text": f"{number:02d}{i:02d}" + "x" * 96}) for i in range(20)]
        (tmp_path / f"{number:03d}.jsonl").write_text("\n".join(lines))
    corpus = corpus_of(tmp_path)
    for asked in (5_000, 50_000):
        sample = [document.text for document in corpus.sample(asked)]
        assert asked * 0.7 <= sum(map(len, sample)) <= asked + 100
        assert {text[:1] for text in sample} == set("0123456789")
    assert [d.text for d in corpus.sample(10**6)] == [d.text for d in corpus]


def test_names_that_are_not_utf8_are_read(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("text")
    (document,) = corpus_of(tmp_path)
    assert document.source == f"{tmp_path}/caf\\xe9.txt"
    assert corpus_of(tmp_path).identity()["files"] == 1


@given(st.lists(st.binary() | st.text(r"\x5cfeé").map(str.encode), unique=True, max_size=9))
def test_no_two_names_are_the_same_text(names: list[bytes]):
    paths = {Path(os.fsdecode(name)) for name in names}
    texts = [printable(path) for path in paths]
    assert len(set(texts)) == len(paths)
    assert all(text.encode().decode() == text for text in texts)


def test_a_byte_order_mark_is_not_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "text"}', encoding="utf-8-sig")
    assert texts(tmp_path) == ["text", "text"]


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "a\ud83d b \ud83d\ude00"}')
    assert texts(tmp_path) == ["a\N{REPLACEMENT CHARACTER} b 😀"]


def test_a_huge_file_comes_in_pieces_that_join_to_it(tmp_path: Path):
    path = tmp_path / "huge.txt"
    content = "世界 one\r\ntwo\n" * 1000 + "no line end " * 1000
    path.write_bytes(content.encode())
    pieces = list(read_text(path, piece_chars=1000))
    assert "".join(piece.text for piece in pieces) == content
    assert [piece.source for piece in pieces[:2]] == [f"{path}:0", f"{path}:1"]
    assert all(piece.text.endswith("\n") for piece in pieces[:10])
    assert max(len(piece.text) for piece in pieces) <= 2000


def test_a_huge_file_with_a_bad_end_gives_nothing(tmp_path: Path):
    path = tmp_path / "huge.txt"
    path.write_bytes(b"fine\n" * 1000 + b"\xff")
    with pytest.raises(Exception, match="byte 0xff"):
        next(read_text(path, piece_chars=100))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
BAD_FILES = {
    "a.jsonl": (b'{"text": "x"}\n{"text": \n', "a.jsonl:2: is not a line of JSON"),
    "b.jsonl": (b'{"text": "\xff"}', "b.jsonl:1: is not a line of JSON in UTF-8"),
    "c.jsonl": (b'["text"]', "c.jsonl:1: is JSON, but not an object"),
    "d.jsonl": (b'{"prose": "x", "id": 1}', "no column 'text' or .* --text-column from: prose, id"),
    "d2.jsonl": (b'{"text": ' + b"[" * 10**5, "d2.jsonl:1: is not a line of JSON"),
    "e.jsonl": (b'{"text": 7}', "e.jsonl:1: 'text' is of type int; it must be a string"),
    "f.jsonl.gz": (gzip.compress(LINES * 100)[:-20], "f.jsonl.gz: cannot be decompressed"),
    "g.jsonl.gz": (b"not gzip", "g.jsonl.gz: cannot be decompressed"),
    "h.jsonl.zst": (b"not zstd", "h.jsonl.zst: cannot be decompressed"),
    "g.csv": (b"id,prose\n1,x\n", "g.csv: has no column 'text' or .* from: id, prose"),
    "g1.csv": (b'text,id\nx,1\n"y\n\n",2,3\n', "g1.csv:1: the row that ends in line 5 has 3"),
    "g2.csv": (
        b'text,id\n"x,1\n',
        "g2.csv: is not a table .* after line 2: unexpected end of data",
    ),
    "g3.csv": (b"text\n\xff\n", "g3.csv: is not a table in UTF-8"),
    "g4.tsv": (b"text\ttext\nx\ty\n", "g4.tsv: has 2 columns 'text'"),
    "g5.csv": (b"", "g5.csv: has no column .* from: none"),
    "h.json": (b'{"prose": "x"}\n{"prose": "y"}', "h.json:1: has no column 'text'"),
    "h.txt": (LFS, "h.txt: is a pointer of Git LFS; .* `git lfs pull`"),
    "h.parquet": (LFS, "h.parquet: is a pointer of Git LFS"),
    "i.parquet": (b"not parquet", "i.parquet: is not a parquet file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, name: str):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        texts(tmp_path)


@pytest.mark.parametrize(
    "content", ['{"name": "x"}', '{\n "text": "x"\n}', '[{"name": "x"}]', '{"text": "x"}\n[1]', "{"]
)
def test_json_that_is_not_in_lines_is_text(tmp_path: Path, content: str):
    (tmp_path / "a.json").write_text(content)
    assert texts(tmp_path) == [content]


def test_a_line_of_csv_without_an_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "LONGEST_LINE", 2**20)
    for content in (b"x" * 2**21, b"x," * 2**20, b'"' + b"x" * 2**21):
        (tmp_path / "a.csv").write_bytes(b"text\n" + content)
        with pytest.raises(
            UserError, match=r"a\.csv: is not a table .* (has more than|larger than)"
        ):
            texts(tmp_path)


def test_a_bad_parquet_column_is_refused(tmp_path: Path, write_parquet: Callable):
    write_parquet(tmp_path / "a.parquet", ["x"], column="prose")
    with pytest.raises(UserError, match="from: id, prose"):
        texts(tmp_path)
    assert texts(tmp_path, text_column="prose") == ["x"]
    twice = pa.table([["x"], ["y"]], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has 2 columns 'text'; rename all"):
        texts(tmp_path)
    write_parquet(tmp_path / "a.parquet", ["x"], column="prose")
    with pytest.raises(UserError, match="'id' is of type int64; it must be a string"):
        texts(tmp_path, text_column="id")


def test_inputs_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path, "a/b.txt")
    (tmp_path / "empty").mkdir()
    for path, message in {
        "none": f"--input none: there is no such file or folder .looked from {tmp_path}",
        "*.md": f"--input .*: the glob matches nothing .looked from {tmp_path}",
        "empty": "--input empty: there is no file in it; check",
    }.items():
        with pytest.raises(UserError, match=message):
            find_files([path])
    with pytest.raises(UserError, match=r"there is no file in it that --include '\*.py' leaves"):
        find_files(["a"], include=["*.py"])


def test_an_input_that_is_mostly_not_text_is_refused(run, tmp_path):
    """As a clone of a dataset is, whose README would be the corpus."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "README.md").write_text("a card\n" * 9)
    (folder / "a.arrow").write_bytes(b"ARROW1\0\0" + b"\xff" * 5000)
    (folder / "b.tar.gz").write_bytes(gzip.compress(b"name".ljust(257, b"\0") + b"ustar"))
    (folder / "c.npy").write_bytes(b"\x93NUMPY")
    command = ("--input", "clone", "--output", "out", "--tokenizer", "char")
    refused = run(*command)
    assert refused.returncode == 2
    (message,) = [line for line in refused.stderr.splitlines() if "llm-preprocess:" in line]
    assert re.search(
        r"clone: most of it is not text: 3 of 4 files \(1 \.npy, 1 Arrow, 1 tar\), .*a\.arrow.*"
        r"--allow-skipped",
        message,
    )
    assert not (tmp_path / "out/train").exists()
    done = run(*command, "--allow-skipped")
    assert done.returncode == 0, done.stderr
    assert "3 files are not UTF-8 text and skipped (1 .npy, 1 Arrow, 1 tar): " in done.stderr
    (folder / "d.txt").write_text("words " * 2000)
    assert run(*command, "--overwrite").returncode == 0
