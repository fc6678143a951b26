"""llm-data prints what is in the shards, as counted by hand."""

import json
import re
import sys

import numpy as np
import pytest
from tiny_runs import ROOT, command

from light_jax.cli import data as cli_module
from light_jax.data import TokenStream
from light_jax.data import stats as stats_module
from light_llm.errors import UserError
from light_llm.tokenizer import train_char

TEXTS = ["to be", "or not to be", "", "that is"]


@pytest.fixture
def corpus(tmp_path, write):
    """data/train with two shards, and their tokenizer in data/tokenizer."""
    tokenizer = train_char(TEXTS)
    tokenizer.save(tmp_path / "data/tokenizer")
    (tmp_path / "data/train").mkdir()
    for number in range(2):
        docs = [[*tokenizer.encode(text), 1] for text in TEXTS[2 * number :][:2]]
        write(tmp_path / f"data/train/{number}.parquet", docs, rows=1)
    return tmp_path / "data/train"


def run(capsys, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["llm-data", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        cli_module.main()
    return end.value.code or 0, *capsys.readouterr()


def test_stats_counts_and_draws(corpus, tmp_path):
    done = command("llm-data", "stats", corpus, "--top", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = dict(re.findall(r"^(\w[\w ]{0,10}\w) {2,}(.+)$", done.stdout, re.MULTILINE))
    assert lines["documents"] == "4"
    assert lines["row groups"] == "4"
    assert lines["tokens"] == "28"
    assert lines["lengths"] == ("mean 7.0, least 1, median 6, 90 % 13, 99 % 13, greatest 13")
    assert lines["ids"] == "12 occur, from 1 to 12"
    assert lines["tokenizer"] == str(corpus.parent / "tokenizer")
    table = re.findall(r"^ +(\d+) +(\d+) +([\d.]+)%  (.*)$", done.stdout, re.MULTILINE)
    assert [(int(count), text) for _, count, _, text in table] == [
        (5, "' '"),
        (5, "'t'"),
        (4, "'<|endoftext|>'"),
    ]
    assert table[0][2] == f"{100 * 5 / 28:.3f}"
    assert (tmp_path / "data-stats.png").read_bytes().startswith(b"\x89PNG")


def test_counts_are_those_of_the_tokens(corpus):
    counted = stats_module.count(str(corpus), "PATH")
    stream = TokenStream(corpus, seq_len=27, seed=0)
    values, counts = np.unique(stream[0], return_counts=True)
    assert np.array_equal(counted.ids, [values, counts])
    share = counts / 28
    assert counted.entropy == pytest.approx(-(share * np.log(share)).sum())
    assert [counted.length_at(q) for q in (0, 0.25, 0.5, 0.51, 0.75, 0.76, 1)] == [
        1, 1, 6, 8, 8, 13, 13
    ]  # fmt: skip


def test_stats_as_json(corpus, tmp_path):
    """The same numbers as one object, with the keys that the page explains; nothing is drawn."""
    done = command("llm-data", "stats", corpus, "--top", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    page = (ROOT / "docs/data.md").read_text()
    assert [key for key in (*report, *report["lengths"]) if f"`{key}`" not in page] == []
    numbers = {"shards": 2, "row_groups": 4, "documents": 4, "empty_documents": 0, "tokens": 28}
    assert {key: report[key] for key in numbers} == numbers
    lengths = {"mean": 7, "least": 1, "median": 6, "p90": 13, "p99": 13, "greatest": 13}
    assert report["lengths"] == lengths
    assert report["ids"] == {"count": 12, "least": 1, "greatest": 12}
    assert [(row["count"], row["text"]) for row in report["most_common"]] == [
        (5, " "), (5, "t"), (4, "<|endoftext|>")
    ]  # fmt: skip
    assert report["tokenizer"] == str(corpus.parent / "tokenizer")
    assert not (tmp_path / "data-stats.png").exists()


@pytest.mark.parametrize("number", [1, 2])
def test_a_picture_has_a_panel_of_shards_where_there_are_several(corpus, tmp_path, number):
    from matplotlib.image import imread

    paths = [str(corpus / f"{n}.parquet") for n in range(number)]
    stats_module.draw(stats_module.count(paths, "PATH"), "t", tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[1] == 4 * 150 * (number + 1)


def test_ids_of_any_size_are_counted(tmp_path, write):
    path = write(tmp_path / "a.parquet", [[2**31 - 1, 5, 2**31 - 1], []])
    counted = stats_module.count(path, "PATH")
    assert counted.most_common(9) == [(2**31 - 1, 2), (5, 1)]
    assert counted.lengths[0].tolist() == [0, 3]
    stats_module.draw(counted, "huge", tmp_path / "a.png")


def test_show_prints_a_window_as_text(corpus, monkeypatch, capsys):
    stream = TokenStream(corpus, seq_len=9, seed=3)
    args = ["show", corpus, "--seq-len", 9, "--seed", 3, "--window"]
    for window in (0, 2, 1000):
        code, out, _ = run(capsys, monkeypatch, *args, window)
        assert code == 0
        text = train_char(TEXTS).decode(stream[window].tolist(), False)
        assert out.endswith(f"tokenizer {corpus.parent / 'tokenizer'}\n\n{text}\n")
        for shard, _, _ in stream.locate(window):
            assert f"shard     {shard}: row" in out
    assert "number 1 of the 3 of epoch 333 (seq_len 9, seed 3)" in out


def test_show_follows_the_shuffled_order(corpus, monkeypatch, capsys):
    stream = TokenStream(corpus, seq_len=9, seed=3, window_order="shuffled")
    args = ["show", corpus, "--seq-len", 9, "--seed", 3, "--window-order", "shuffled", "--window"]
    for window in range(3):
        code, out, _ = run(capsys, monkeypatch, *args, window)
        assert code == 0
        number = int(stream.unshuffled(np.array([window]))[0])
        assert f"window    {window}: number {number} of the 3 of epoch 0" in out
        assert out.endswith(f"\n{train_char(TEXTS).decode(stream[window].tolist(), False)}\n")


def test_without_a_tokenizer_ids_are_shown_and_it_is_said(tmp_path, write, monkeypatch, capsys):
    path = write(tmp_path / "a.parquet", [[5, 6, 7]])
    code, out, _ = run(capsys, monkeypatch, "show", path, "--seq-len", 2)
    assert code == 0
    assert out.endswith("\n5 6 7\n")
    assert "tokenizer none in " in out
    assert "ids are shown, --tokenizer names one" in out
    train_char("ab").save(tmp_path / "other")
    code, out, _ = run(
        capsys, monkeypatch, "stats", path, "--no-png", "--tokenizer", tmp_path / "other"
    )
    assert "which has ids below 4 only: not that of these shards?" in out
    assert "row groups" in out


def test_only_empty_documents(tmp_path, write, monkeypatch, capsys):
    path = write(tmp_path / "a.parquet", [[], []])
    code, out, _ = run(capsys, monkeypatch, "stats", path, "--png", tmp_path / "a.png")
    assert code == 0
    code, report, _ = run(capsys, monkeypatch, "stats", path, "--json")
    assert {key: json.loads(report)[key] for key in ("ids", "entropy")} == {
        "ids": None, "entropy": None
    }  # fmt: skip
    assert re.search(r"documents +2, 2 of them empty\ntokens +0\n", out)
    assert (tmp_path / "a.png").exists()


def test_what_cannot_be_done_is_said_in_one_message(corpus, tmp_path, write, monkeypatch, capsys):
    write(tmp_path / "none.parquet", [])
    faults = {
        ("stats", "gone"): "PATH='gone' does not exist (looked from ",
        ("stats", tmp_path / "none.parquet"): "holds no document",
        ("stats", corpus, "--png", tmp_path / "no/x.png"): "no/x.png: cannot be written: No such",
        ("show", corpus, "--tokenizer", "./gone"): "gone",
        ("show", corpus, "--seq-len", 100): "lower seq_len=100",
    }
    for args, message in faults.items():
        code, _, err = run(capsys, monkeypatch, *args)
        assert code == 2
        assert err.startswith("llm-data: ")
        assert message in err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, monkeypatch, "stats", corpus)
    assert (code, out) == (2, "")
    assert "pip install 'light-llm-jax[plot]'" in err
    code, out, _ = run(capsys, monkeypatch, "stats", corpus, "--no-png")
    assert code == 0
    assert "drawn" not in out


def test_a_damaged_shard_is_named(corpus, monkeypatch, capsys):
    path = corpus / "1.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"1\.parquet: the shard is truncated"):
        stats_module.count(str(corpus), "PATH")
