"""`~` and environment variables in paths that a user writes."""

from pathlib import Path

import pytest

from light_llm.files.userpath import expanded, with_home


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DATA", "/mnt/data")
    monkeypatch.setenv("IN_HOME", "~/data")
    monkeypatch.setenv("DOLLAR", "a$DATA")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "text, path",
    {
        "~": "/home/ada",
        "~/x": "/home/ada/x",
        "~root/x": f"{Path('~root').expanduser()}/x",
        "./~/x": "./~/x",
        "a/~": "a/~",
        "$DATA/x": "/mnt/data/x",
        "${DATA}s/*.parquet": "/mnt/datas/*.parquet",
        "x/$DATA": "x//mnt/data",
        "$IN_HOME/x": "/home/ada/data/x",
        "$DOLLAR": "a$DATA",  # a value is not looked at again
        "a$$DATA": "a$DATA",
        "costs $5": "costs $5",
        "end$": "end$",
        "": "",
        "plain/path": "plain/path",
    }.items(),
)
def test_what_a_path_stands_for(text, path):
    assert expanded(text) == path


@pytest.mark.parametrize(
    "text, message",
    {
        "$UNSET/x": "needs the environment variable UNSET, which is not set",
        "a/${UNSET}": "needs the environment variable UNSET, which is not set",
        "$EMPTY/x": "needs the environment variable EMPTY, which is empty",
        "${DATA:-x}": r"has \${DATA:-x}, and only",
        "${DATA": r"has \${DATA, and only",
        "${}": r"has \${}, and only",
        "~nobody-of-this-name/x": "names the home folder of 'nobody-of-this-name'",
    }.items(),
)
def test_what_cannot_be_replaced_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        expanded(text)


def test_a_file_whose_name_begins_with_a_tilde_is_itself():
    Path("~$letter.txt").write_text("")
    assert with_home("~$letter.txt") == "~$letter.txt"
