"""--dedupe exact: of each text the first document stays, however a run is made or stopped."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, copies, dedupe, making, part, preprocess
from light_llm.preprocess.corpus import FileCorpus
from light_llm.preprocess.dedupe import deduped, find_copies
from light_llm.preprocess.files import find_files
from light_llm.preprocess.journal import Journal
from light_llm.preprocess.making import make_part
from light_llm.preprocess.manifest import MANIFEST
from light_llm.preprocess.parts import finish, prepare
from light_llm.preprocess.request import request_of
from light_llm.preprocess.rows import RowText


class Killed(BaseException):
    """Abrupt, like an unhandled signal."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bound is met many times by a few documents."""
    for module, name, value in (
        (dedupe, "BITS", 1),
        (dedupe, "BATCH", 7),
        (dedupe, "AT_ONCE", 5),
        (copies, "BLOCK", 2),
        (part, "SMALL_CHUNKS", 1),
    ):
        monkeypatch.setattr(module, name, value)


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def texts_of(*numbers: int) -> list[str]:
    return [f"text {number} of many" for number in numbers]


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder of files of each kind, with copies in one file and across; and what must stay of it,
    as `source`, in order."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(["", *texts_of(1, 2, 1), " ", *texts_of(3, 1)]))
    (folder / "b.csv").write_text(
        "id,text\n0,text 4 of many\n1,text 2 of many\n2,\n3,text 4 of many\n"
    )
    (folder / "c.json").write_text(json.dumps([{"text": text} for text in texts_of(5, 5, 3, 6)]))
    (folder / "d.txt").write_text(texts_of(6)[0])
    (folder / "e.txt").write_text(texts_of(7)[0])
    (folder / "f.txt").write_text("")
    (folder / "g.jsonl.gz").write_bytes(gzip.compress(lines(texts_of(7, 8, 1, 8, 9))))
    (folder / "h.png").write_bytes(b"\x89PNG\r\n\0\0")
    pq.write_table(
        pa.table({"text": [*texts_of(9, 10), None, *texts_of(10)]}), folder / "i.parquet"
    )
    stay = ["a.jsonl:2", "a.jsonl:3", "a.jsonl:6", "b.csv:0", "c.json:0", "c.json:3", "e.txt"]
    stay += ["g.jsonl.gz:2", "g.jsonl.gz:5", "i.parquet:1"]
    return folder, [f"{folder}/{source}" for source in stay]


def config(source: Path, output: Path, **more: object) -> PreprocessConfig:
    usual = {"tokenizer": "char", "workers": 1, "val_fraction": 0, "dedupe": "exact"}
    return PreprocessConfig.model_validate(
        usual | {"input": str(source), "output": str(output), "allow_skipped": True} | more
    )


@pytest.mark.parametrize("shrunk", [False, True])
def test_of_each_text_the_first_document_stays(
    mixed: tuple[Path, list[str]],
    tmp_path: Path,
    rows: Callable,
    capsys: pytest.CaptureFixture,
    request: pytest.FixtureRequest,
    shrunk: bool,
):
    if shrunk:
        request.getfixturevalue("small")
    folder, stay = mixed
    summary = preprocess(config(folder, tmp_path / "out"))
    assert [row["source"] for row in rows(tmp_path / "out/train")] == stay
    assert summary.duplicates == 0
    assert "12 duplicates are dropped" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert (manifest["options"]["dedupe"], manifest["duplicates"]) == ("exact", 0)
    preprocess(config(folder, tmp_path / "parts", parts=3))
    assert [row["source"] for row in rows(tmp_path / "parts/train")] == stay
    for parts in (None, 3):
        mixed_up = config(folder, tmp_path / f"mixed{parts}", shuffle_seed=5, parts=parts)
        preprocess(mixed_up)
        got = [row["source"] for row in rows(tmp_path / f"mixed{parts}/train")]
        assert sorted(got) == stay
        assert got != stay


def test_without_copies_the_shards_are_those_of_a_run_without_it(tmp_path: Path, files: Callable):
    (tmp_path / "a.jsonl").write_bytes(lines(texts_of(*range(40))))
    for name, dropping in (("plain", None), ("out", "exact")):
        preprocess(config(tmp_path / "a.jsonl", tmp_path / name, dedupe=dropping, val_fraction=0.2))
    for name in ("train", "val", "tokenizer"):
        assert files(tmp_path / "out" / name) == files(tmp_path / "plain" / name)


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, start: Callable):
    """A limit to the bytes of a file stands for the disk."""
    (tmp_path / "a.jsonl").write_bytes(lines(texts_of(*range(40_000))))
    flags = ("--input", "a.jsonl", "--dedupe", "exact", "--tokenizer", "char", "--output", "out")
    with start(*flags) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3000, 3000))
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert errors.splitlines()[-1].endswith("out/.preprocess/copies: File too large")
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_run_that_is_killed_anywhere_is_continued_to_the_same_bytes(
    tmp_path: Path, run: Callable, start: Callable, files: Callable
):
    """While it looks for duplicates, after that, and while it writes; what is found stays found."""
    some = [f"text {number % 5000} of many " * 9 for number in range(6500)]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(some if name == "a" else some[::-1]))
    flags = ("--input", "a.jsonl", "--input", "b.jsonl", "--tokenizer", "char")
    flags += ("--dedupe", "exact", "--shard-size", 9000, "--val-fraction")
    flags += (0.1, "--workers", 1, "--output")
    whole = run(*flags, "whole")
    assert whole.returncode == 0, whole.stderr
    assert "together: 5,000 documents" in whole.stdout
    stage = tmp_path / "out/.preprocess"

    def journal() -> bytes:
        path = stage / "journal.jsonl"
        return path.read_bytes() if path.exists() else b""

    found = []
    for reached in (
        (stage / "copies").is_dir,
        lambda: b'"copies"' in journal(),
        lambda: b'"sha256"' in journal(),
    ):
        process = start(*flags, "out")
        _until(process, reached)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
        found.append("looking for duplicates" not in errors)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out/train").exists()
    last = run(*flags, "out")
    assert last.returncode == 0, last.stderr
    assert found[2]
    assert "looking for duplicates" not in last.stderr
    assert "continuing a run that was stopped" in last.stderr
    assert last.stdout == whole.stdout.replace("whole", "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def _until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Files with 300 documents, 100 of which are copies, for several shards."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for number in range(3):
        some = [f"text {each % 200} of many " * 9 for each in range(number, 300, 3)]
        (folder / f"{number}.jsonl").write_bytes(lines(some))
    return folder


def stopped(asked: PreprocessConfig, monkeypatch: pytest.MonkeyPatch, at: str = "finish") -> Path:
    """The stage of a run that died in a step of its journal."""

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, at, die)
        with pytest.raises(Killed):
            preprocess(asked)
    return asked.output / ".preprocess"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {"flipped": flip, "cut": lambda path: os.truncate(path, 3), "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["copies/list", "copies/index"])
def test_a_damaged_list_is_told_and_nothing_is_shown(
    copied: Path,
    tmp_path: Path,
    files: Callable,
    small: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: str,
):
    asked = config(copied, tmp_path / "out", shard_size=9000)
    preprocess(config(copied, tmp_path / "whole", shard_size=9000))
    stage = stopped(asked, monkeypatch)
    DAMAGE[damage](stage / name)
    with pytest.raises(UserError, match=r"not the list of duplicates .*--overwrite"):
        preprocess(asked)
    assert [path.name for path in asked.output.iterdir()] == [".preprocess"]
    preprocess(asked.model_copy(update={"overwrite": True}))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_damaged_list_stops_its_part_until_it_is_prepared_again(
    copied: Path, tmp_path: Path, files: Callable
):
    asked = config(copied, tmp_path / "out", parts=3)
    preprocess(config(copied, tmp_path / "whole", parts=3))
    prepare(request_of(asked))
    flip(tmp_path / "out/.preprocess/copies/list")
    with pytest.raises(UserError, match=r"not the list of duplicates .*--prepare --overwrite"):
        [make_part(request_of(asked), number) for number in range(3)]
    with pytest.raises(UserError, match="not the list of duplicates"):
        prepare(request_of(asked))
    prepare(request_of(asked.model_copy(update={"overwrite": True})))
    for number in range(3):
        make_part(request_of(asked), number)
    finish(request_of(asked))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert making.STAGE not in {path.name for path in (tmp_path / "out").iterdir()}


def test_a_text_that_changed_after_it_was_found_is_not_dropped(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Even where size and time are as before."""
    asked = config(copied, tmp_path / "out")
    stopped(asked, monkeypatch, "save_tokenizer")
    path = copied / "2.jsonl"
    before = path.stat()
    path.write_text(path.read_text().replace("many", "more"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"2\.jsonl:\d+: has changed since duplicates were"):
        preprocess(asked)
    assert not (tmp_path / "out/train").exists()


def test_the_input_must_not_change_while_duplicates_are_looked_for(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An adapter that writes to the input stands for another program."""
    adapter = tmp_path / "writing.py"
    more = f"open({str(copied / '0.jsonl')!r}, 'a').write('{{}}\\n')"
    adapter.write_text(
        f"def adapt(row):\n    if row['text'].startswith('text 2 '):\n        {more}\n"
        "    return row['text']\n"
    )
    asked = config(copied / "1.jsonl", tmp_path / "out", adapter_module=str(adapter))
    asked = asked.model_copy(update={"input": (str(copied),)})
    with pytest.raises(UserError, match="changed while duplicates were looked for"):
        preprocess(asked)
    assert not (tmp_path / "out").exists()


def test_a_dataset_is_refused_with_a_way():
    with pytest.raises(ValueError, match=r"hf download .*hf://datasets"):
        PreprocessConfig(hf_dataset="a/b", output=Path("out"), dedupe="exact")


def test_a_stage_of_another_request_is_not_taken(copied: Path, tmp_path: Path, files: Callable):
    """A list that was left belongs to its own request."""
    with pytest.MonkeyPatch.context() as patch:
        stopped(config(copied, tmp_path / "out"), patch, "save_tokenizer")
    longer = {"min_length": 99, "dedupe": "exact"}
    preprocess(config(copied, tmp_path / "out", **longer))
    preprocess(config(copied, tmp_path / "whole", **longer))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    shutil.rmtree(tmp_path / "out")


def test_files_are_found_by_themselves_not_by_their_place(copied: Path, tmp_path: Path):
    whole = FileCorpus(find_files([str(copied)])[0], RowText(("text",)))
    listed = find_copies(whole, tmp_path / "copies", allow_skipped=False)
    corpus = deduped(whole, tmp_path, listed)
    some = [document.text for file in reversed(whole.files) for _, document in corpus.usable(file)]
    assert len(some) == len(set(some)) == 200
