"""Reading what comes from outside never hangs, never takes all memory, and ends in a message."""

import os
import socket
from pathlib import Path

import pytest

from light_llm.errors import UserError
from light_llm.files import given


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "f")
    with pytest.raises(UserError, match="f: the file is a FIFO"):
        given.read_bytes(tmp_path / "f")


def test_a_device_has_no_end_and_is_refused(tmp_path):
    (tmp_path / "z").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a device"):
        given.read_bytes(tmp_path / "z")


def test_a_socket_and_a_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("s")
        with pytest.raises(UserError, match="cannot be read"):
            given.read_bytes(Path("s"))
    with pytest.raises(UserError, match="is a folder"):
        given.read_bytes(tmp_path)


def test_a_missing_file_and_a_name_with_a_zero_byte_are_messages(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        given.read_bytes(tmp_path / "none")
    with pytest.raises(UserError, match="null"):
        given.read_bytes(f"{tmp_path}/a\0b")


def test_a_file_beyond_its_limit_is_refused(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"x" * 11)
    assert given.read_bytes(path, limit=11) == b"x" * 11
    with pytest.raises(UserError, match="more than 10 bytes"):
        given.read_bytes(path, limit=10)


def test_json_that_is_too_deep_broken_or_not_text_is_a_message(tmp_path):
    path = tmp_path / "a.json"
    for content, rule in (
        (b"[" * 200_000, "too deep"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"1" * 5000, "not valid JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rule):
            given.read_json(path)
    path.write_text('{"a": [1]}')
    assert given.read_json(path) == {"a": [1]}


def test_a_name_is_one_component_of_a_path():
    assert given.is_name("tokenizer")
    assert not any(map(given.is_name, ("", ".", "..", "a/b", "../x", "/x", "a\0", "x" * 256, 3)))


def test_where_a_link_leads(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "secret"
    inside.mkdir()
    outside.write_text("x")
    (inside / "file").write_text("y")
    (inside / "near").symlink_to("file")
    (inside / "far").symlink_to("../secret")
    assert given.leads_out(inside / "near", inside) is None
    assert given.leads_out(inside / "far", inside) == outside.resolve()
