"""What a run in parts refuses: requests without a meaning, those of another run, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from in_parts import asked, make, visible
from pydantic import ValidationError

from light_llm.errors import UserError
from light_llm.preprocess import preprocess
from light_llm.preprocess.dryrun import estimate
from light_llm.preprocess.parts import finish, prepare
from light_llm.preprocess.plan import folder_of
from light_llm.preprocess.request import request_of


@pytest.mark.parametrize(
    "options, message",
    [
        ({"part": 3}, "part=3 must be 0 to 2 with parts=3"),
        ({"part": -1}, "part=-1 must be 0 to 2 with parts=3"),
        ({"parts": 0}, "must be 1 to 10000"),
        ({"parts": None, "part": 0}, "part=0 has no meaning without parts"),
        ({"parts": None, "cluster": "ray"}, "cluster='ray' has no meaning without parts"),
        ({"part": 0, "finish": True}, "part and finish are set, and each is a command of its own"),
        ({"cluster": "dask"}, "must be ray, or ray://HOST:PORT"),
        ({"cluster": "ray://host"}, "must be ray, or ray://HOST:PORT"),
        ({"input": (), "hf_dataset": "a/b"}, "hf download --repo-type dataset a/b"),
    ],
)
def test_a_request_that_has_no_meaning_is_refused(options: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        asked("out", **options)


def test_more_parts_than_files_are_refused_with_a_remedy(kinds: Path, files: Callable):
    with pytest.raises(UserError, match=r"parts=7 is more than the 6 files .*split -n l/8"):
        prepare(request_of(asked("out", 7)))
    assert not Path("out").exists()


def test_a_step_of_another_request_names_what_differs(kinds: Path):
    with pytest.raises(UserError, match=r"nothing is prepared .* --parts 3 --prepare first"):
        make("out", 3, 0)
    with pytest.raises(UserError, match=r"nothing is prepared"):
        finish(request_of(asked("out")))
    assert not Path("out").exists()
    prepare(request_of(asked("out")))
    make("out", 3, 0)
    with pytest.raises(UserError, match="asked for something else: min_length was 1 and is 5"):
        make("out", 3, 1, min_length=5)
    with pytest.raises(UserError, match="asked for something else: parts was 3 and is 4"):
        make("out", 4, 3)
    with pytest.raises(UserError, match=r"something else: val_fraction was 0\.1 and is 0\.2"):
        finish(request_of(asked("out", val_fraction=0.2)))
    with pytest.raises(UserError, match=r"a run in 3 parts .*\(1 of them made\).* was 3 and is 2"):
        prepare(request_of(asked("out", 2)))
    plain = asked("out").model_copy(update={"parts": None})
    with pytest.raises(UserError, match=r"run in 3 parts that was prepared .* parts was 3 and is"):
        preprocess(plain)
    (kinds / "f.txt").write_text("changed")
    with pytest.raises(UserError, match="something else: the input changed"):
        make("out", 3, 1)
    assert visible("out") == []
    with pytest.raises(UserError, match="leave out --part"):
        estimate(asked("out", part=1))


def test_overwrite_discards_what_was_prepared(
    kinds: Path, files: Callable, capsys: pytest.CaptureFixture
):
    whole = asked("whole", 2)
    preprocess(whole)
    prepare(request_of(asked("out")))
    make("out", 3, 0)
    prepare(request_of(asked("out", 2, overwrite=True)))
    assert "what was prepared for a run in parts is discarded" in capsys.readouterr().err
    preprocess(asked("out", 2))
    assert files(Path("out")) == files(Path("whole"))
    prepare(request_of(asked("other")))
    plain = {"parts": None, "overwrite": True}
    preprocess(asked("other").model_copy(update=plain))
    preprocess(asked("plain").model_copy(update=plain))
    assert files(Path("other")) == files(Path("plain"))


@pytest.mark.parametrize("damage", ["gone", "cut", "journal", "request", "tokenizer", "plan"])
def test_what_the_parts_left_is_not_trusted_blindly(kinds: Path, files: Callable, damage: str):
    preprocess(asked("whole"))
    prepare(request_of(asked("out")))
    for number in range(3):
        make("out", 3, number)
    stage = Path("out/.preprocess")
    folder = folder_of(stage, 1)
    shard = folder / "new/train/shard_00001.parquet"
    journal = folder / "journal.jsonl"
    if damage == "gone":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "journal":
        journal.write_bytes(journal.read_bytes() + b"[]\n")
    elif damage == "request":
        journal.write_text(journal.read_text().replace('"min_length": 1', '"min_length": 2'))
    elif damage == "tokenizer":
        (stage / "new/tokenizer/char_tokenizer.json").write_text("{}")
    else:
        (stage / "plan.json").write_bytes((stage / "plan.json").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"--overwrite"):
        finish(request_of(asked("out")))
    assert visible("out") == []
    if damage in ("tokenizer", "plan"):
        preprocess(asked("out", overwrite=True))
    else:
        assert not make("out", 3, 1, overwrite=True).before
        assert make("out", 3, 0, overwrite=True).before
        finish(request_of(asked("out")))
    assert files(Path("out")) == files(Path("whole"))


def test_a_link_in_the_place_of_a_part_is_not_followed(kinds: Path, tmp_path: Path):
    prepare(request_of(asked("out")))
    folder = folder_of(Path("out/.preprocess"), 1)
    (tmp_path / "elsewhere").mkdir()
    (folder / "new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="so llm-preprocess did not put it there"):
        make("out", 3, 1)
    assert list((tmp_path / "elsewhere").iterdir()) == []
