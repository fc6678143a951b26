"""What a file is that is not UTF-8 text, and how it can be read all the same."""

from __future__ import annotations

from light_llm.files.remotefile import InputFile
from light_llm.preprocess.opening import (
    decompressing,
    is_compressed,
    open_bytes,
    open_raw,
    unreadable,
)

ARROW, UTF_16, NOT_UTF_8 = "Arrow", "UTF-16", "text that is not UTF-8"
_KINDS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
    (b"PAR1", "parquet"),
    (b"ARROW1", ARROW),
    (b"\xff\xff\xff\xff", ARROW),  # a stream, as `datasets` saves
    (b"%PDF", "PDF"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"SQLite format 3\0", "SQLite"),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
)
_REMEDIES = {
    ARROW: "name the folder of a dataset that `datasets` saved with --hf-dataset",
    UTF_16: "convert it with `iconv -f utf-16 -t utf-8`",
    NOT_UTF_8: "convert it, with `iconv -f latin1 -t utf-8` if it is Latin-1",
}
_CONTROLS = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})
"""Bytes that text in no encoding of single bytes has."""


def kind_of_binary(path: InputFile, encoded: bool = False) -> str:
    """What a file is that is not UTF-8 text: by its first bytes, else by its ending.

    Args:
        encoded: it holds bytes that no UTF-8 text has, so it may be text in another encoding.
    """
    heads = []
    with unreadable(), open_raw(path) as file:
        heads.append(file.read(512))
    if is_compressed(path):
        with unreadable(), decompressing(path), open_bytes(path) as file:
            heads.insert(0, file.read(512))
    for head in heads:
        if head[257:262] == b"ustar":
            return "tar"
        for magic, kind in _KINDS:
            if head.startswith(magic):
                return kind
    if encoded and heads and _may_be_text(heads[0]):
        return NOT_UTF_8
    return path.suffix.lower()[:16] or "other"


def _may_be_text(head: bytes) -> bool:
    """Whether bytes have several words, and no controls that text of single bytes lacks."""
    return len(head.split()) > 1 and head.translate(None, _CONTROLS) == head


def remedy(kind: str) -> str:
    """How a file that `kind_of_binary` calls so can be read all the same; "" if in no way."""
    return _REMEDIES.get(kind, "")
