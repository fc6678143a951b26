"""Bytes of a remote object, asked for by their range, and only of the version that was found.

Where a store can be asked for one version (S3, Google's), or says with each answer which it is (the
web), every range is of it. Of all but S3 and the web, the state is compared when the last byte was
read too: older clients of Google's store ask for the newest version.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from light_llm.errors import UserError
from light_llm.files import remote, urls

_STATES = (
    *("generation", "ETag", "etag", "blob_id", "md5Hash", "Content-MD5"),
    *("LastModified", "Last-Modified", "mtime"),
)
"""What a store says of an object's state, the most certain first."""
_CHANGED = (412, 416)
"""The answers where the object is another one, or too short for the range."""


@dataclass(frozen=True)
class RemotePath:
    """An object of a store, as it was found."""

    url: str
    size: int
    state: str
    """A key and a value, of which its store has another for another content; "" if it has none."""

    @property
    def name(self) -> str:
        return urls.name(self.url)

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    def __str__(self) -> str:
        return self.url


class Unread(UserError):
    """An object that cannot be read to its end, whatever it holds."""


def described(url: str, info: Mapping[str, Any]) -> RemotePath:
    """An object, from what its store says of it.

    Raises:
        UserError: its store does not say how large it is.
    """
    size = info.get("size")
    if type(size) is not int:
        raise UserError(
            f"{url}: its server does not say how many bytes it has; download it, and give the file"
        )
    return RemotePath(url, size, _state(info))


def _state(told: Mapping[str, Any]) -> str:
    return next((f"{key}={told[key]}" for key in _STATES if told.get(key) is not None), "")


def found(url: str) -> RemotePath:
    """The object as it is now.

    Raises:
        UserError: it cannot be asked for, or has no size.
    """
    if urls.parts(url).scheme == "hf":  # which lists the whole folder once its cache is dropped
        return described(
            url, remote.tried(url, lambda fs: fs.info(url, refresh=True, expand_info=True))
        )
    remote.forgotten(url)
    return described(url, remote.tried(url, lambda fs: fs.info(url)))


def read(path: RemotePath, start: int, stop: int) -> bytes | None:
    """Bytes start to stop - 1; None where the server gives no ranges.

    Raises:
        Unread: they cannot be had, or the object is no longer what it was.
    """

    def ask(fs: Any) -> bytes | None:
        data: bytes | None
        try:
            if hasattr(fs, "call_s3"):
                data = _of_s3(fs, path, start, stop)
            elif urls.parts(path.url).scheme in ("http", "https"):
                data = _of_the_web(fs, path, start, stop)
            else:
                data = _of_others(fs, path, start, stop)
        except Exception as error:
            if remote.status_of(error) in _CHANGED:
                raise changed(path) from None
            if isinstance(error, FileNotFoundError):  # perhaps it has another version
                check(path)
            raise
        if data is not None and len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came where {stop - start} were asked for")
        return data

    try:
        return remote.tried(path.url, ask)
    except Unread:
        raise
    except UserError as error:
        raise Unread(f"{error}") from None


def _of_s3(fs: Any, path: RemotePath, start: int, stop: int) -> bytes:
    from fsspec.asyn import sync

    bucket, key, version = fs.split_path(path.url)
    kind, _, value = path.state.partition("=")
    more = {"IfMatch": value} if kind == "ETag" else {}
    if version:
        more["VersionId"] = version
    wanted = f"bytes={start}-{stop - 1}"
    body = fs.call_s3("get_object", Bucket=bucket, Key=key, Range=wanted, **more)["Body"]
    try:
        return sync(fs.loop, body.read)
    finally:
        body.close()


def _of_the_web(fs: Any, path: RemotePath, start: int, stop: int) -> bytes | None:
    from fsspec.asyn import sync

    wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    more = fs.kwargs | {"headers": fs.kwargs.get("headers", {}) | wanted}

    async def get() -> bytes | None:
        session = await fs.set_session()
        async with session.get(fs.encode_url(path.url), **more) as answer:
            answer.raise_for_status()
            told = answer.headers
            whole = answer.status != 206
            size = told.get("Content-Length") if whole else _total(told.get("Content-Range", ""))
            key, _, known = path.state.partition("=")
            other = bool(key) and told.get(key) is not None and told[key] != known
            if (size is not None and int(size) != path.size) or other:
                raise changed(path)
            if whole and (start, stop) != (0, path.size):
                return None
            return await answer.read()

    return sync(fs.loop, get)


def _total(content_range: str) -> str | None:
    """`bytes 0-9/1000` -> 1000, where it is told."""
    total = content_range.rpartition("/")[2]
    return total if total.isdigit() else None


def _of_others(fs: Any, path: RemotePath, start: int, stop: int) -> bytes:
    if urls.parts(path.url).scheme == "hf":  # whose cat_file reads more than is asked for
        with fs.open(path.url, "rb", cache_type="none") as file:
            file.seek(start)
            data = file.read(stop - start)
    else:
        key, _, value = path.state.partition("=")
        more = {key: value} if key == "generation" else {}
        data = fs.cat_file(path.url, start=start, end=stop, **more)
    if stop == path.size or len(data) != stop - start:
        check(path)
    return data


def check(path: RemotePath) -> None:
    """
    Raises:
        Unread: the object is no longer what it was.
    """
    if found(path.url) != path:
        raise changed(path)


def changed(path: RemotePath) -> Unread:
    return Unread(
        f"{path}: the object changed after the input was looked through, when it had "
        f"{path.size:,} bytes; let what writes to it end, and start again"
    )
