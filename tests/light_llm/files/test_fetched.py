"""Objects of a store: listed as paths are, fetched once, whole, or refused with what to do."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import object_store
import pytest
from fsspec.registry import _registry
from object_store import fail, requests

from light_llm.errors import UserError
from light_llm.files import fetched, remote, urls

KEY = "bucket/data/a.parquet"
URL = f"s3://{KEY}"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The store's folder, with one object; this process has looked at nothing yet."""
    with object_store.used(tmp_path, monkeypatch) as folder:
        put(folder, KEY, b"0123456789" * 100)
        yield folder


def put(store: Path, key: str, data: bytes) -> None:
    (store / key).parent.mkdir(parents=True, exist_ok=True)
    (store / key).write_bytes(data)


def copies(store: Path) -> list[str]:
    return sorted(os.listdir(store.parent / "cache"))


def test_a_url_is_listed_as_a_path_is(store):
    for name in ("b.parquet", ".c.parquet", "notes.txt", "deep/er/d.parquet", "run[1]/e.parquet"):
        put(store, f"bucket/data/{name}", b"x")
    at = "s3://bucket/data"
    assert remote.listed(at) == remote.listed(f"{at}/") == [URL, f"{at}/b.parquet"]
    assert remote.listed(URL) == [URL]
    assert remote.listed(f"{at}/[b-z]*") == [f"{at}/b.parquet", f"{at}/notes.txt"]
    every = [f"{at}/{name}" for name in ("a.parquet", "b.parquet", "deep/er/d.parquet")]
    assert remote.listed(f"{at}/**/*.parquet") == [*every, f"{at}/run[1]/e.parquet"]
    assert remote.listed(f"{at}/run[1]") == [f"{at}/run[1]/e.parquet"]
    assert remote.listed(f"{at}/gone") == []


def test_an_object_is_fetched_once_and_whole(store):
    path = fetched.local(URL)
    assert path.read_bytes() == (store / KEY).read_bytes()
    assert fetched.local(URL) == path
    assert requests(store, "get_file") == [KEY]
    assert copies(store) == [path.name]


def test_a_connection_that_is_cut_is_tried_again(store):
    fail(store, "get_file", KEY, "cut")
    assert fetched.local(URL).read_bytes() == (store / KEY).read_bytes()
    fail(store, "info", KEY, "reset", times=2)
    assert remote.version(URL).size == 1000


def test_tries_come_to_an_end_with_a_message_without_secrets(store):
    fail(store, "get_file", KEY, "cut", times=3)
    with pytest.raises(UserError, match=r"a\.parquet: could not be read, 3 times .*500 bytes came"):
        fetched.local(URL)
    assert not [name for name in copies(store) if not name.endswith(fetched.PART)]
    fail(store, "get_file", KEY, "reset", times=3)
    with pytest.raises(UserError, match=r"ConnectionResetError.* check the connection") as caught:
        fetched.local(URL)
    assert "hidden" not in str(caught.value)
    assert fetched.local(URL).stat().st_size == 1000  # once the store is well again


def test_no_access_and_no_object_are_told_at_once(store):
    fail(store, "get_file", KEY, "forbidden")
    with pytest.raises(UserError, match=r"no access .* AWS_PROFILE") as caught:
        fetched.local(URL)
    assert "hidden" not in str(caught.value)
    (store / KEY).unlink()
    with pytest.raises(UserError, match="no such object; `aws s3 ls s3://bucket/data/` shows"):
        fetched.local(URL)
    assert requests(store, "get_file") == [KEY, KEY]


def test_a_changed_object_has_another_copy_and_is_noticed_while_it_is_fetched(store):
    first = fetched.local(URL)
    put(store, KEY, b"other")
    assert fetched.local(URL) == first  # who reads it goes on with what it began with
    fetched.look_again(URL)
    assert fetched.local(URL).read_bytes() == b"other"
    put(store, KEY, b"a third")
    fetched.look_again(URL)
    fail(store, "get_file", KEY, "changed")
    with pytest.raises(UserError, match="changed since it was first looked at"):
        fetched.local(URL)


def test_a_copy_that_lost_its_end_is_fetched_again(store):
    path = fetched.local(URL)
    os.truncate(path, 10)
    assert fetched.local(URL).stat().st_size == 1000


def test_processes_of_a_host_fetch_an_object_once(store, tmp_path):
    code = (
        "import sys, time\nfrom light_llm.files import fetched\n"
        f"print(fetched.local({URL!r}).stat().st_size)"
    )
    env = os.environ | object_store.installed(tmp_path)
    command = [sys.executable, "-c", code]
    each = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in "abc"]
    assert {process.communicate()[0] for process in each} == {"1000\n"}
    assert requests(store, "get_file") == [KEY]


def test_who_waits_can_give_up(store, monkeypatch):
    closed, answered = threading.Event(), threading.Event()
    download = remote.download
    monkeypatch.setattr(remote, "download", lambda *to: answered.wait(30) and download(*to))
    threading.Timer(0.2, closed.set).start()
    with pytest.raises(fetched.Abandoned):
        fetched.local(URL, closed)
    answered.set()
    assert fetched.want(URL).result().stat().st_size == 1000


def test_what_was_not_used_for_longest_makes_room(store, monkeypatch):
    for name in "bcd":
        put(store, f"bucket/data/{name}.parquet", name.encode() * 1000)
    monkeypatch.setenv(fetched.LIMIT, "0.0000035")  # three copies
    paths = [fetched.local(f"s3://bucket/data/{name}.parquet") for name in "abc"]
    fetched.local("s3://bucket/data/d.parquet")
    assert all(path.exists() for path in paths)  # in use a moment ago
    (store.parent / "cache" / "of-the-user").write_bytes(b"0")
    for age, path in zip((300, 500, 100), paths, strict=True):
        os.utime(path, (time.time() - age, path.stat().st_mtime))
    put(store, "bucket/data/e.parquet", b"e" * 1000)
    fetched.local("s3://bucket/data/e.parquet")
    assert [path.exists() for path in paths] == [False, False, True]
    assert "of-the-user" in copies(store)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e3"])
def test_a_limit_that_is_no_number_is_refused(store, monkeypatch, text):
    monkeypatch.setenv(fetched.LIMIT, text)
    with pytest.raises(UserError, match=f"{fetched.LIMIT}='{text}' must be a number of gigabytes"):
        fetched.local(URL)


def test_a_folder_that_cannot_be_made_is_a_message(store, monkeypatch):
    monkeypatch.setenv(fetched.FOLDER, str(store / KEY / "x"))
    with pytest.raises(
        UserError, match=f"cannot be kept there .* name a folder in {fetched.FOLDER}"
    ):
        fetched.local(URL)


def test_a_full_disk_is_a_message_and_leaves_nothing(store):
    fail(store, "get_file", KEY, "full")
    with pytest.raises(UserError, match=r"1,000 bytes cannot be written to .*free some space, or"):
        fetched.local(URL)
    assert copies(store) == []


@pytest.mark.parametrize(
    "content, fault",
    [
        (None, "which is not installed"),
        (
            "import decorator_of_gcsfs",
            "which is here, but the import of decorator_of_gcsfs failed ",
        ),
        (
            "from json import gone",
            "which is here, but the import of json failed (cannot import name",
        ),
        ("raise ImportError('libx.so')", "which is here, but the import failed (libx.so)"),
    ],
)
def test_a_module_that_is_missing_is_named(tmp_path, monkeypatch, content, fault):
    remote.filesystem.cache_clear()
    monkeypatch.delitem(_registry, "gs", raising=False)
    monkeypatch.delitem(sys.modules, "gcsfs", raising=False)
    if content is None:
        monkeypatch.setitem(sys.modules, "gcsfs", None)
    else:
        (tmp_path / "gcsfs.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        remote.version("gs://bucket/x")
    assert str(caught.value).startswith(f"gs:// needs gcsfs, {fault}")
    assert str(caught.value).endswith(": pip install 'light-llm-jax[remote]'")


@pytest.mark.parametrize(
    "url, rule",
    [
        ("ftp://host/x", "must begin with gs://, s3://"),
        ("s3://key:hidden@bucket/x", "must not hold a user name"),
        ("https://host/x.parquet?sig=hidden", "must not have a query"),
        ("https://user@host/x", "must not hold a user name"),
        ("file://data/x", "must name a path from the root"),
        ("s3://", "must name a folder"),
    ],
)
def test_a_url_that_is_refused(url, rule):
    with pytest.raises(ValueError, match=rule):
        urls.check(url)
    assert "hidden" not in urls.without_secrets(f"a {url!r} b")
    assert urls.without_secrets(f"a {url!r} b").endswith("' b")


@pytest.mark.parametrize("url", ["gs://b/x", "hf://datasets/a/b@main/x", "file:///x", "s3://b/?.p"])
def test_a_url_that_is_taken(url):
    urls.check(url)
    assert urls.without_secrets(url) == url


def test_a_server_of_the_web_is_a_store(tmp_path, monkeypatch):
    """A page of links is a folder; a server without parts gives the whole file."""
    pytest.importorskip("aiohttp")
    monkeypatch.setenv(fetched.FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(fetched, "_versions", {})
    monkeypatch.setattr(remote, "WAITS", (0.01,))
    (tmp_path / "www/train").mkdir(parents=True)
    (tmp_path / "www/train/a.parquet").write_bytes(b"x" * 100)
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "-d", tmp_path / "www"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = server.stdout.readline().split("port ")[1].split()[0]
        at = f"http://127.0.0.1:{port}/train"
        assert remote.listed(at) == [f"{at}/a.parquet"]
        assert remote.read_range(f"{at}/a.parquet", 10, 20) is None
        assert fetched.local(f"{at}/a.parquet").read_bytes() == b"x" * 100
        with pytest.raises(UserError, match="there is no such object"):
            remote.version(f"{at}/b.parquet")
    finally:
        server.kill()
        server.wait()
    with pytest.raises(UserError, match="could not be read, 2 times"):
        remote.version(f"{at}/a.parquet")
