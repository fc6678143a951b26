"""Objects of a store (S3, Google Cloud Storage, the Hugging Face hub, a web server), by fsspec.

Each request is tried again after errors that may pass. Errors that will not are messages with the
URL, and without secrets. Which keys are used is the store's own affair: its environment variables
and files.
"""

from __future__ import annotations

import errno
import functools
import logging
import posixpath
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from light_llm.errors import UserError, one_line
from light_llm.files import urls
from light_llm.files.packages import missing_package

Result = TypeVar("Result")

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try."""
PATIENCE = 60.0
"""Seconds after which there is no further one: some clients try for half a minute by themselves."""
STALL = 60.0
"""Seconds without a byte after which an answer is given up (of S3: botocore's `read_timeout`)."""
LOGGERS = ("fsspec", "gcsfs", "s3fs", "aiobotocore", "huggingface_hub")
_OF_A_VERSION = (
    *("ETag", "etag", "generation", "blob_id", "md5Hash", "Content-MD5"),
    *("LastModified", "Last-Modified", "mtime"),
)
_NO_ACCESS = {401, 402, 403}
_NO_KEYS = {
    *("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"),
    *("GatedRepoError", "NoAuthHandlerFound", "ProfileNotFound"),
}
_OF_GCSFS = "Forbidden: "
"""How gcsfs begins what it says of the status 403, an OSError without a number."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_BUGS = (TypeError, AttributeError, NameError, AssertionError, MemoryError)


@dataclass(frozen=True)
class Version:
    """What an object is: its bytes, and what its store says of its state (ETag, times)."""

    size: int
    state: str


def listed(url: str, pattern: str = "*.parquet") -> list[str]:
    """Sorted: of a folder the objects that match `pattern`, an object, or what a glob matches.

    As of paths, `**` crosses folders, and names that begin with a dot are left out of what is not
    named. Empty where there is no such object.

    Raises:
        UserError: the store cannot be asked, or gives no access.
    """
    scheme, folder = urls.parts(url).scheme, url.rstrip("/")
    kind = _kind(url)
    if kind == "file":
        return [url]
    if kind == "directory":
        found = tried(folder, lambda fs: fs.ls(folder, detail=False))
        names = {urls.name(name) for name in found if not str(name).endswith("/")}
        wanted = [name for name in names if _matches(name, pattern)]
        return [urls.child(folder, name) for name in sorted(wanted)]
    if not urls.has_magic(url):
        return []
    found = tried(url, lambda fs: fs.glob(url, detail=True))
    files = [name for name, info in found.items() if info.get("type") != "directory"]
    hidden = "/." in url
    shown = [name for name in files if hidden or "/." not in name]
    return sorted(_as_url(scheme, name) for name in shown)


def is_folder(url: str) -> bool:
    return _kind(url) == "directory"


def _kind(url: str) -> str | None:
    """`file`, `directory`, or None where there is nothing of this name."""
    forgotten(url)
    try:
        kind = tried(url, lambda fs: fs.info(url)).get("type")
    except Missing:
        return None
    if kind == "file" and urls.parts(url).scheme in ("http", "https"):
        # a web server's folder is a page of links
        page = url.endswith("/") or not posixpath.splitext(urls.name(url))[1]
        return "directory" if page else "file"
    return kind


def _matches(name: str, pattern: str) -> bool:
    import fnmatch

    return not name.startswith(".") and fnmatch.fnmatchcase(name, pattern)


def _as_url(scheme: str, name: str) -> str:
    return name if urls.is_url(name) else f"{scheme}://{name}"


def version(url: str) -> Version:
    """The state of an object now.

    Raises:
        UserError: there is no such object, or its store says no size.
    """
    forgotten(url)
    info = tried(url, lambda fs: fs.info(url))
    size = info.get("size")
    if info.get("type") == "directory" or not isinstance(size, int):
        raise UserError(f"{url}: its server does not say how many bytes it has; copy the shard")
    told = [f"{key}={info[key]}" for key in _OF_A_VERSION if info.get(key) is not None]
    return Version(size, ";".join(told))


def read_range(url: str, start: int, stop: int) -> bytes | None:
    """Bytes start to stop - 1 of an object; None where its server gives no parts.

    Raises:
        UserError: it cannot be read.
    """

    def read(fs: Any) -> bytes | None:
        data = fs.cat_file(url, start=start, end=stop)
        if len(data) > stop - start:
            return None
        if len(data) < stop - start:
            raise OSError(f"{len(data)} bytes came where {stop - start} were asked for")
        return data

    return tried(url, read)


def read_small(url: str, limit: int) -> bytes | None:
    """An object of at most `limit` bytes; None where there is none, no access, or it is larger."""
    try:
        size = version(url).size
        return read_range(url, 0, size) if 0 < size <= limit else None
    except (Missing, Forbidden):  # a store without the right to list says the second of both
        return None


def download(url: str, size: int, to: Path) -> None:
    """Write an object of `size` bytes to the file `to`.

    Raises:
        UserError: it cannot be read, or comes with another size.
    """

    def get(fs: Any) -> None:
        fs.get_file(url, str(to))
        if to.stat().st_size != size:
            raise OSError(f"{to.stat().st_size:,} bytes came where it has {size:,}")

    tried(url, get)


class Missing(UserError):
    """There is no such object."""


class Forbidden(UserError):
    """The store gives no access."""


def tried(url: str, request: Callable[[Any], Result]) -> Result:
    """What `request` gives, called with the file system of `url`; again after a passing error.

    Raises:
        Missing: there is no such object.
        Forbidden: the store gives no access, or there are no keys.
        UserError: it did not succeed at any try.
    """
    fs = filesystem(urls.parts(url).scheme)
    began = time.monotonic()
    for number, wait in enumerate((*WAITS, None), 1):
        try:
            return request(fs)
        except _BUGS:
            raise
        except OSError as error:
            if error.errno in _OF_THE_DISK:  # that of the cache: full, or not to be written
                raise
            failure: Exception = error
        except UserError:
            raise
        except Exception as error:
            failure = error
        if urls.parts(url).scheme in ("http", "https") and isinstance(failure.__cause__, Exception):
            failure = failure.__cause__  # fsspec calls any failure to look a missing file
        refusal = _refusal(url, failure)
        if refusal is not None:
            raise refusal from None
        passed = time.monotonic() - began
        if wait is None or passed > PATIENCE:
            reason = urls.without_secrets(one_line(failure, 300))
            raise UserError(
                f"{url}: could not be read, {number} times in {passed:.0f} s "
                f"({type(failure).__name__}: {reason}); check the connection, and start again"
            )
        time.sleep(wait)
    raise AssertionError


def _refusal(url: str, error: Exception) -> UserError | None:
    """The message of an error that will not pass; None of any other."""
    scheme = urls.parts(url).scheme
    reason = urls.without_secrets(one_line(error, 200))
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return Missing(f"{url}: there is no such object; {look(url)}")
    refused = isinstance(error, PermissionError) or str(error).startswith(_OF_GCSFS)
    if refused or status in _NO_ACCESS or _named(error) & _NO_KEYS:
        return Forbidden(
            f"{url}: no access ({type(error).__name__}: {reason}); {_keys(scheme)}, and must be "
            "allowed to list and read it"
        )
    if isinstance(error, ImportError):
        return missing_package(scheme, error)
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of any client is about."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for value in (getattr(holder, name, None) for holder in (error, response) for name in _STATUS):
        if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            return int(value)
    return status_of(error.__cause__) if error.__cause__ is not None else None


_STATUS = ("status", "status_code", "code")


def _named(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def look(url: str) -> str:
    """How to see what is where a URL leads: the end of a message."""
    command = {"s3": "aws s3 ls", "gs": "gcloud storage ls"}.get(urls.parts(url).scheme)
    folder = urls.child(urls.parent(url), "")
    return f"`{command} {folder}` shows what is there" if command else "check its spelling"


def _keys(scheme: str) -> str:
    return {
        "s3": "the keys of AWS_PROFILE or AWS_ACCESS_KEY_ID, or those of `aws configure`, are used",
        "gs": "the account of `gcloud auth application-default login`, or of "
        "GOOGLE_APPLICATION_CREDENTIALS, is used",
        "hf": "the token of `hf auth login` or HF_TOKEN is used",
    }.get(scheme, "no password is sent: the user of this command is asked for none")


def forgotten(url: str) -> None:
    """Forget what was listed: an object may have changed since."""
    filesystem(urls.parts(url).scheme).invalidate_cache()


@functools.cache
def filesystem(scheme: str) -> Any:
    """The file system of fsspec for a scheme. Its options come from fsspec's own configuration.

    Raises:
        UserError: its package, or one that this needs, cannot be imported.
    """
    try:
        import fsspec

        for name in LOGGERS:  # they log what they raise, with traces and signed addresses
            logging.getLogger(name).setLevel(logging.CRITICAL)
        configured = fsspec.config.apply_config(fsspec.get_filesystem_class(scheme), {})
        option = _TIMEOUT.get(scheme)
        if option is None or option in configured:
            return fsspec.filesystem(scheme)
        import aiohttp

        # of the web the default ends any transfer after five minutes; of gs:// there is none
        patience = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=STALL)
        return fsspec.filesystem(scheme, **{option: patience})
    except ImportError as error:
        raise missing_package(scheme, error) from None


_TIMEOUT = {"http": "timeout", "https": "timeout", "gs": "requests_timeout"}
