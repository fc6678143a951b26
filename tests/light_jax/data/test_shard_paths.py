"""A config's data paths: a directory, a file, a glob, or a list of these."""

import os
from pathlib import Path

import pytest

from light_jax.data.shards import expand
from light_llm.errors import UserError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("b.parquet", "a.parquet", "notes.txt", ".hidden.parquet", "deep/er/c.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "paths, names",
    [
        (".", ["./a.parquet", "./b.parquet"]),
        ("b.parquet", ["b.parquet"]),
        ("notes.txt", ["notes.txt"]),
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("**/*.parquet", ["a.parquet", "b.parquet", "deep/er/c.parquet"]),
        ("[b-z]*", ["b.parquet", "notes.txt"]),
        (["b.parquet", "deep/er", "a*"], ["b.parquet", "deep/er/c.parquet", "a.parquet"]),
        (Path("b.parquet"), ["b.parquet"]),
    ],
)
def test_each_path_is_expanded_in_sorted_order(tree, paths, names):
    assert expand(paths) == names


def test_absolute_paths_and_globs(tree):
    names = [str(tree / "a.parquet"), str(tree / "b.parquet")]
    assert expand(str(tree)) == expand(str(tree / "*.parquet")) == names
    assert expand(str(tree / "**" / "c.*")) == [str(tree / "deep/er/c.parquet")]


def test_a_name_with_glob_characters_is_a_name_first(tree):
    (tree / "run[1]").mkdir()
    (tree / "run[1]" / "x.parquet").write_bytes(b"")
    assert expand("run[1]") == ["run[1]/x.parquet"]
    assert expand("run[1]/x.parquet") == ["run[1]/x.parquet"]


def test_a_glob_that_a_message_recommends_matches(tree):
    """Also where the name of the folder holds glob characters."""
    for name in ("hive [v1]", "what?", "all*", "deep"):
        (tree / name / "lang=de").mkdir(parents=True)
        (tree / name / "lang=de/x.parquet").write_bytes(b"")
        with pytest.raises(UserError, match="some further down: use '") as refused:
            expand(name)
        pattern = str(refused.value).split("use '")[1].rstrip("'")
        assert f"{name}/lang=de/x.parquet" in expand(pattern)
    with pytest.raises(UserError, match=r"matches no file .*a \[ of a name is written \[\[\]"):
        expand("hive [v1]/**/*.parquet")


def test_a_file_reached_twice_is_taken_once_with_a_warning(tree):
    os.symlink("a.parquet", tree / "link.parquet")
    with pytest.warns(UserWarning, match=r"val_data: .*link\.parquet \(already there as a\.par"):
        assert expand(["a.parquet", "link.parquet"], "val_data") == ["a.parquet"]
    with pytest.warns(UserWarning, match="each shard is read once"):
        assert expand(["b.parquet", "[ab].parquet"]) == ["b.parquet", "a.parquet"]


@pytest.mark.parametrize(
    "paths, message",
    [
        ("*.arrow", r"val_data='\*\.arrow' matches no file \(looked from {cwd}\)"),
        ("d*", r"val_data='d\*' matches directories only; end it in /\*\.parquet"),
        ("gone.parquet", r"val_data='gone.parquet' does not exist \(looked from {cwd}\)"),
        ("/gone/x", r"val_data='/gone/x' does not exist; give a directory"),
        ("deep", r"'deep' is a directory without \*\.parquet files; .*deep/\*\*/\*\.parquet"),
        ("empty", r"'empty' is a directory without \*\.parquet files; put"),
        ("ftp://host/x", "'ftp://host/x' must begin with gs://, s3://"),
        ([], r"val_data=\[\] names no data"),
        ("", "val_data holds '', which is not a path"),
        (["a.parquet", None], "val_data holds None, which is not a path"),
    ],
)
def test_a_path_that_stands_for_nothing(tree, paths, message):
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match=message.format(cwd=tree)):
        expand(paths, "val_data")
