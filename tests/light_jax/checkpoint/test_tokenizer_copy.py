"""The tokenizer that a run copies into its folder, so that the folder works wherever it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from in_process import call
from tiny_runs import command, contents, train_command, write_config

from light_jax.checkpoint import protocol
from light_jax.checkpoint.tokenizer import keep_tokenizer
from light_llm.cli.run import main as llm_run
from light_llm.tokenizer import load_tokenizer, train_bpe, train_char

CHANGES = {"num_steps": 2, "save_every": 2, "val_data": ..., "model": {"num_layers": 1}}
MORE = {"num_steps": 4, "save_every": 4}


def test_a_copied_run_writes_the_same_text_without_the_original(tmp_path, monkeypatch):
    tokenizer = train_char(["the cat sat on the mat"])
    tokenizer.save(tmp_path / "here/data/tokenizer")
    config = write_config(tmp_path / "here/c.yaml", **CHANGES, tokenizer_path="data/tokenizer")
    done = train_command(config)
    assert "tokenizer" not in done.stderr
    out = tmp_path / "here/out"
    assert contents(out / "tokenizer") == contents(tmp_path / "here/data/tokenizer")
    assert not list(out.glob(".tokenizer*"))

    flags = ("--prompt", "the cat", "--seed", 1, "--max-tokens", 5)
    monkeypatch.chdir(tmp_path / "here")
    before = call(llm_run, "--checkpoint", "out", *flags)
    shutil.copytree(out, tmp_path / "there/run")
    shutil.rmtree(tmp_path / "here/data")
    moved = command("llm-run", "--checkpoint", "run", *flags, cwd=tmp_path / "there")
    assert (
        (moved.returncode, moved.stdout) == (before.exit_code, before.stdout) == (0, moved.stdout)
    )

    # a resume keeps the copy, though the original is gone
    write_config(config, **(CHANGES | MORE), tokenizer_path="data/tokenizer")
    resumed = train_command(config, "--resume", "auto")
    assert "tokenizer" not in resumed.stderr
    assert load_tokenizer(out / "tokenizer").encode("cat") == tokenizer.encode("cat")


def keep(directory: Path, path: Path | str | None, run: str | None = None) -> dict:
    directory.mkdir(exist_ok=True)
    keep_tokenizer(directory, None if path is None else str(path), run)
    return contents(directory)


def test_what_is_there_already_stays_and_is_told(tmp_path, capsys):
    train_bpe(["the cat"], 260).save(tmp_path / "bpe")
    train_char(["the cat"]).save(tmp_path / "char")
    out = tmp_path / "out"
    first = keep(out, tmp_path / "bpe")
    assert set(first) == {
        "tokenizer",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    assert keep(out, tmp_path / "bpe") == keep(out, None) == first
    assert keep(out, "gone/away", run="r") == first
    assert capsys.readouterr().err == ""
    assert keep(out, tmp_path / "char") == first
    assert "is there already and is not the tokenizer of tokenizer_path" in capsys.readouterr().err
    compact = (tmp_path / "bpe/tokenizer.json").read_text().replace("\n", " ")
    (out / "tokenizer/tokenizer.json").write_text(compact)  # the same, spelt otherwise
    (out / "tokenizer/mine.txt").touch()
    before = contents(out)
    assert keep(out, tmp_path / "bpe") == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_a_foreign_tokenizer_folder_is_not_touched(kind, tmp_path, capsys):
    train_char(["the cat"]).save(tmp_path / "char")
    place = tmp_path / "out/tokenizer"
    place.parent.mkdir()
    if kind == "folder":
        place.mkdir()
        (place / "diary.txt").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    before = contents(tmp_path / "out")
    assert keep(tmp_path / "out", tmp_path / "char") == before
    assert "no copy was made" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_be_loaded_stops_nothing(tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{")
    names = (tmp_path / "broken", "none/here", "x" * 300, "~nobody-of-this-name/tokenizer")
    for name in names:
        assert keep(tmp_path / "out", name) == {}
        said = capsys.readouterr().err
        assert said.startswith("note: no copy of the tokenizer was made in ")
        assert said.count("\n") == 1


def test_a_crash_leaves_no_half_copy(tmp_path, capsys):
    train_char(["the cat"]).save(tmp_path / "char")
    out = tmp_path / "out"
    out.mkdir()
    staging = protocol.start(out, "tokenizer", "")  # as a kill between the two renames leaves it
    load_tokenizer(tmp_path / "char").save(staging / "tokenizer")
    protocol.recover(out, None)
    assert contents(out) == {}
    staging.mkdir()
    (staging / "diary.txt").write_text("mine")  # without a mark it is not the run's
    before = contents(out)
    protocol.recover(out, None)
    assert keep(out, tmp_path / "char") == before
    assert "is in the way" in capsys.readouterr().err


def test_llm_run_passes_over_a_folder_that_is_no_tokenizer(tmp_path, monkeypatch):
    """With a note, if the config names one; and refuses without."""
    monkeypatch.chdir(tmp_path)
    train_char(["the cat sat on the mat"]).save("mine")
    train_command(write_config(tmp_path / "c.yaml", **CHANGES, tokenizer_path="mine"))
    shutil.rmtree("out/tokenizer")
    Path("out/tokenizer").mkdir()
    flags = ("--checkpoint", "out/final", "--prompt", "the", "--max-tokens", 2)
    done = call(llm_run, *flags)
    assert done.exit_code == 0, done.stderr
    assert "out/tokenizer: is not a tokenizer folder" in done.stderr
    assert "tokenizer_path='mine' is read instead" in done.stderr
    shutil.rmtree("mine")
    done = call(llm_run, *flags)
    assert (done.exit_code, "tokenizer_path of out/final" in done.stderr) == (2, True)
