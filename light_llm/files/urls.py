"""URLs of data: which are taken, their parts, and how they are shown without their secrets."""

from __future__ import annotations

import posixpath
import re
from typing import NamedTuple

SCHEMES = ("gs", "s3", "hf", "http", "https", "file")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(https?://[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")


class Parts(NamedTuple):
    """`s3://bucket/data/train` -> s3, bucket/data/train."""

    scheme: str
    rest: str


def is_url(text: object) -> bool:
    """Whether a text is a URL, of any scheme, and so no path of this machine."""
    return isinstance(text, str) and _URL.match(text) is not None


def parts(url: str) -> Parts:
    found = _URL.fullmatch(url)
    assert found is not None, url
    return Parts(found[1].lower(), found[2])


def check(url: str) -> None:
    """Refuse what is not fetched, and what would put a secret into messages and checkpoints.

    Raises:
        ValueError: the message goes on from the URL.
    """
    scheme, rest = parts(url)
    if scheme not in SCHEMES:
        names = ", ".join(f"{name}://" for name in SCHEMES[:-1])
        raise ValueError(
            f"must begin with {names} or {SCHEMES[-1]}://, if it is a URL; copy the files to one "
            "of these, or to a file system"
        )
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            "must not hold a user name, key or password, which would stand in checkpoints, "
            "manifests and messages; leave out what is before the @, and give keys as docs/data.md "
            "says"
        )
    if scheme in ("http", "https") and _QUERY.match(url):
        raise ValueError(
            "must not have a query, which can be a signature and would stand in checkpoints, "
            "manifests and messages; leave out the ? or # and what follows"
        )
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError("must name a path from the root, as file:///data/train")
    if not rest.strip("/") or any(ord(letter) < 32 for letter in rest):
        raise ValueError("must name a folder, a file or a glob")


def without_secrets(text: str) -> str:
    """A text, with user names, keys and queries of the URLs in it replaced by an ellipsis."""
    return _QUERY.sub(r"\1?…", _USER.sub("…@", text))


def has_magic(url: str) -> bool:
    """Whether a URL may be a glob."""
    return is_magic(parts(url).rest)


def is_magic(text: str) -> bool:
    """Whether a part of a URL may be a glob."""
    return _MAGIC.search(text) is not None


def parent(url: str) -> str:
    """The folder of a URL; that of a bucket or host is itself."""
    scheme, rest = parts(url.rstrip("/"))
    folder = posixpath.dirname(rest)
    return f"{scheme}://{folder or rest}"


def name(url: str) -> str:
    return posixpath.basename(url.rstrip("/"))


def child(folder: str, *names: str) -> str:
    return "/".join([folder.rstrip("/"), *names])
