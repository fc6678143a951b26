"""Texts as people have them. tests/field/README.md says who had which trouble with what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import in_process
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from light_llm.cli.preprocess import main
from light_llm.cli.prompts import read_prompts
from light_llm.errors import UserError
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.files import find_files
from light_llm.preprocess.opening import LONGEST_LINE
from light_llm.preprocess.rows import RowText
from light_llm.preprocess.sources import read_file

TEXT = RowText(("text", "content"))
ROWS = [{"text": f"the sea, number {i}", "id": i} for i in range(9)]
WANTED = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
BOM = b"\xef\xbb\xbf"


def texts(path: Path) -> list[str]:
    return [document.text for document in read_file(path, TEXT)]


def all_texts(folder: Path) -> list[str]:
    return [document.text for document in FileCorpus(find_files([str(folder)])[0], TEXT)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("before", [b"", BOM, b"\r\n  "])
def test_an_array_of_rows_is_rows(tmp_path, indent, before):
    """Not a document that begins with `[{"text":`."""
    path = tmp_path / "a.json"
    path.write_bytes(before + json.dumps(ROWS, indent=indent).encode() + b"\n")
    assert texts(path) == WANTED
    assert [document.source for document in read_file(path, TEXT)][-1] == f"{path}:8"


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "a caption"}, {"id": 3}],
        [{"role": "user", "content": "a"}, {"role": "tool", "calls": []}],
        [{"text": "a"}, {"text": 7}],
    ],
)
def test_an_array_of_which_some_have_no_text_is_a_text(tmp_path, rows):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert texts(path) == [path.read_text()]


def test_a_number_that_is_too_long_is_a_message(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": "b", "n": ' + 5000 * "9" + "}]")
    with pytest.raises(UserError, match=r"a\.json:1: is not JSON that can be read"):
        texts(path)


def test_an_array_is_decoded_piece_by_piece(tmp_path):
    """Its elements, strings and escapes may be cut anywhere by the pieces that are read."""
    long = ["\N{GRINNING FACE}" * 300_000, 'quoted " \\ ' * 200_000, "", "x" * 2**21]
    path = tmp_path / "a.json"
    for ascii_alone in (True, False):
        rows = [{"text": text, "n": -1.5e-9, "ok": True} for text in long]
        path.write_text(json.dumps(rows, ensure_ascii=ascii_alone), "utf-8")
        assert texts(path) == long


def test_other_json_stays_text(tmp_path):
    path = tmp_path / "a.json"
    for content in (
        "[]",
        '["text"]',
        '[{"name": 1}]',
        '[{"text": 1}]',
        '[{"text": "x"',
        '{"a": [1]}',
    ):
        path.write_text(content)
        assert texts(path) == [content]


@pytest.mark.parametrize(
    ("content", "message"),
    {
        f'[{64 * """{"text": "a"}, """}{{"txt": "b"}}]': r":64: has no column 'text' or 'content'",
        '[{"text": "a"}, {"text": "b" 3}]': r":1: is not JSON: Expecting ',' delimiter",
        '[{"text": "a"}, {"text": "b': r":1: is not JSON: Unterminated string",
        '[{"text": "a"}, 3]': r":1: each element of the array must be an object",
        '[{"text": "a"}': r":1: a `,` or `\]` must stand behind each object",
        '[{"text": "a"}] 7': r":1: the array is over",
    }.items(),
)
def test_a_bad_array_is_refused_with_its_row(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        texts(path)


def test_an_element_without_an_end_is_bounded(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": "' + "b" * (2 * LONGEST_LINE))
    with pytest.raises(UserError, match="more than 67,108,864 characters"):
        texts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    {
        json.dumps(ROWS): "each line must hold one object. A file that is one array",
        json.dumps(ROWS[0]) + json.dumps(ROWS[1]): "Extra data.*one object and nothing else",
        json.dumps(ROWS[0]) + ",": "Extra data.*one object and nothing else",
        json.dumps(ROWS[0], indent=1): "each line must hold one object",
        '{"text": ["a"]}': "'text' is of type list; it must be a string: .*--adapter-module",
    }.items(),
)
def test_lines_that_hold_no_row_are_refused_with_the_remedy(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        texts(path)


def test_a_file_whose_texts_are_all_missing_is_empty(tmp_path):
    """pyarrow and pandas give such a column the type null."""
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    corpus = FileCorpus(find_files([str(tmp_path)])[0], TEXT)
    assert [document.text for document in corpus] == WANTED
    assert corpus.skipped.empty == 3


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"bytes"]),
        pa.array([{"en": "a"}]),
        pa.array([[{"role": "user", "content": "a"}]]),
        pa.array([1]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_of_another_type_is_refused_with_the_remedy(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"is of type .*; it must be a string: .*--adapter-module"):
        texts(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id;text\n1;a\n", "choose with --text-column from: id;text. The columns of a"),
        ("a.csv", b"id\ttext\n1\ta\n", "parted by commas, those of a .tsv by tabs"),
        ("a.csv", "id,text\n1,a\n".encode("utf-16"), "convert it with `iconv -f utf-16 -t utf-8`"),
        ("a.csv", "id,text\n1,café\n".encode("latin1"), "`iconv -f latin1 -t utf-8` if it is"),
        ("a.txt", "a café\n".encode("latin1"), "byte 0xe9: .*`iconv -f latin1 -t utf-8` if it is"),
        ("a.txt", "a café\n".encode("utf-16"), "convert it with `iconv -f utf-16 -t utf-8`"),
        ("a.txt", b"a\0b", r"zero byte\); leave it out"),
        ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "`datasets` saved with --hf-dataset"),
        ("a.parquet", b"", "get a whole copy of it, or leave it out"),
    ],
)
def test_what_is_no_utf8_is_told_how_it_becomes_one(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(FileCorpus(find_files([str(tmp_path / name)])[0], TEXT))


def test_a_folder_of_another_encoding_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/a.txt").write_bytes("café au lait, ".encode("latin1") * 40)
    done = in_process.call(main, "--input", "in", "--output", "out", "--tokenizer", "char")
    assert done.exit_code == 2
    assert "(1 text that is not UTF-8)" in done.stderr
    assert "convert it, with `iconv -f latin1 -t utf-8` if it is Latin-1" in done.stderr


def test_a_window_beyond_what_is_decoded_is_told_as_such(tmp_path):
    """As of `zstd --long=31`: a frame whose header asks for a window of 2 GiB."""
    block = ((len(LINES) << 3) | 1).to_bytes(3, "little") + LINES
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + b"\0" + bytes([(31 - 10) << 3]) + block)
    with pytest.raises(UserError, match=r"too much memory.*`zstd -dc --long=31 OLD \| zstd > NEW`"):
        texts(path)
    path.write_bytes(b"\x28\xb5\x2f\xfd" + b"\0" + bytes([(20 - 10) << 3]) + block)
    assert texts(path) == WANTED


def test_every_frame_of_a_file_is_read(tmp_path):
    """zstd files in several frames, some of them to be skipped, as other tools write them."""
    frames = b""
    for number in range(3):
        with pa.CompressedOutputStream(str(tmp_path / "part"), "zstd") as out:
            out.write(b"".join(LINES.splitlines(keepends=True)[3 * number : 3 * number + 3]))
        frames += (tmp_path / "part").read_bytes() + b"\x50\x2a\x4d\x18\x04\0\0\0skip"
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    assert texts(tmp_path / "a.jsonl.zst") == WANTED


def test_what_macos_and_notebooks_leave_in_folders_is_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "._a.jsonl").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints/a-checkpoint.jsonl").write_bytes(LINES)
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "itself.jsonl").symlink_to("itself.jsonl")
    assert all_texts(tmp_path) == WANTED


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    (tmp_path / "p.txt").write_bytes(BOM + b"abc\r\ndef\r\n")
    (tmp_path / "p.jsonl").write_bytes(BOM + b'{"prompt": "abc"}\r\n{"prompt": "def"}\r\n')
    for name in ("p.txt", "p.jsonl"):
        prompts = read_prompts([], str(tmp_path / name))
        assert [prompt.text for prompt in prompts] == ["abc", "def"]


def test_files_of_a_dataset_that_differ_are_told_another_way(tmp_path, monkeypatch):
    """A column that is null in the first file: `datasets` then takes no text in the next."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    Path("set/a.jsonl").write_text('{"text": null, "about": null}\n')
    Path("set/b.jsonl").write_bytes(LINES)
    command = ["--output", "out", "--tokenizer", "char", "--workers", "1", "--val-fraction", "0"]
    done = in_process.call(main, "--hf-dataset", "set", *command)
    assert done.exit_code == 2
    assert "Couldn't cast" in done.stderr
    assert "Read the files themselves with --input" in done.stderr
    done = in_process.call(main, "--input", "set", *command)
    assert done.exit_code == 0, done.stderr
    assert "together: 9 documents" in done.stdout


def test_few_open_files_are_enough_for_many(tmp_path):
    for number in range(90):
        (tmp_path / f"{number:03}.txt").write_text(f"text number {number}")
    limited = f"ulimit -n 40 && exec {Path(sys.executable).parent}/llm-preprocess"
    done = subprocess.run(
        ["sh", "-c", f"{limited} --input . --output ../out --tokenizer char --workers 2"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "together: 90 documents" in done.stdout


def test_a_locale_that_cannot_name_a_file_stops_no_command(tmp_path):
    """Python itself turns to UTF-8 in an ASCII locale, unless it is told not to."""
    folder = tmp_path / "m\u00e4rchen"
    folder.mkdir()
    (folder / "\u00e9t\u00e9.txt").write_text("the cat \u00e9t\u00e9 " * 50)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["--input", folder, "--output", folder / "data", "--tokenizer", "char"]
    line = [Path(sys.executable).with_name("llm-preprocess"), *words, "--val-fraction", "0"]
    done = subprocess.run(line, env=os.environ | locale, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert f"tokenizer: {folder}/data/tokenizer" in done.stdout.decode()
    (shard,) = (folder / "data/train").glob("*.parquet")
    assert pq.read_table(shard).column("source").to_pylist() == [f"{folder}/\u00e9t\u00e9.txt"]
    line = [Path(sys.executable).with_name("llm-train"), folder / "none.yaml"]
    missing = subprocess.run(line, env=os.environ | locale, capture_output=True, timeout=100)
    assert missing.returncode == 2
    assert f"{folder}/none.yaml: there is no such config file" in missing.stderr.decode()
