"""The tensors of a safetensors file, of its parts or of a Hugging Face folder, by our keys; values
when asked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from conversion.families import hf_key, our_key
from conversion.mapping import TIED_KEY
from light_llm.checkpoint import parts
from light_llm.checkpoint.folder import (
    CONFIG_JSON,
    folder_config,
    refuse_other_class,
    weight_files,
)
from light_llm.errors import UserError
from light_llm.files import given
from light_llm.files.foreign import foreign_file
from light_llm.files.tensor_file import WIDTHS

DTYPES = tuple(WIDTHS)  # names in the header of a weights file
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Parts of a key that wrappers of PyTorch add, and which does."""
BUFFER = ".rotary_emb.inv_freq"
"""The end of keys of rope's frequencies, which files of old versions hold."""


class Tensor(NamedTuple):
    """What the header of a weights file says about one tensor, and where it lies."""

    dtype: str  # one of DTYPES
    shape: tuple[int, ...]
    file: Path
    name: str  # in the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.dtype]


class Folder(NamedTuple):
    """The tensors of a Hugging Face folder by our keys; a key that is not ours stays as it is."""

    tensors: dict[str, Tensor]
    wrapped: list[str]  # parts of WRAPPERS that were taken off its keys
    buffers: int  # how many tensors were left out, since they follow from the config


MAPPED = 2**28
"""Bytes that are read of mapped files before they are mapped anew: until then, what was read counts
as this process's memory."""
_DESCRIPTORS = Path("/proc/self/fd")


class Reader:
    """Tensors read one at a time; each file is opened once, until the `with` ends.

    It is mapped again and again, and not by its name, which a run may give to a newer file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], framework: str) -> None:
        self._tensors, self._framework = tensors, framework
        self._files: dict[Path, Any] = {}
        self._mapped, self._open = contextlib.ExitStack(), contextlib.ExitStack()
        self._names: dict[Path, Path] = {}  # by which a file is mapped
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._unmap()
        self._open.close()

    def _unmap(self) -> None:
        self._files.clear()
        self._mapped.close()
        self._read = 0

    def _file(self, tensor: Tensor) -> Any:
        from safetensors import safe_open

        if self._read > MAPPED and _DESCRIPTORS.is_dir():
            self._unmap()
        self._read += tensor.nbytes
        if tensor.file not in self._files:
            opened = safe_open(self._name(tensor.file), framework=self._framework)
            self._files[tensor.file] = self._mapped.enter_context(opened)
        return self._files[tensor.file]

    def _name(self, path: Path) -> Path:
        if path not in self._names:
            file = self._open.enter_context(given.open_regular(path, "the weights file"))
            named = _DESCRIPTORS / str(file.fileno())
            self._names[path] = named if _DESCRIPTORS.is_dir() else path
        return self._names[path]

    def whole(self, key: str) -> Any:
        """An array or tensor of the framework, in the stored type."""
        tensor = self._tensors[key]
        return self._file(tensor).get_tensor(tensor.name)

    def part(self, key: str) -> Any:
        """What reads a part by slices in brackets."""
        tensor = self._tensors[key]
        return self._file(tensor).get_slice(tensor.name)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by key, without their values.

    Raises:
        UserError: it is not a safetensors file, or its numbers are not of a weights type.
    """
    from safetensors import safe_open

    given.check_regular(path, "the weights file")
    try:
        with given.foreign(str), safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            tensors = {
                key: Tensor(part.get_dtype(), tuple(part.get_shape()), path, key)
                for key, part in slices.items()
            }
    except UserError as error:
        reason = str(error)
        if (kind := foreign_file(path)) is not None:
            reason = f"it is {kind}"
        raise UserError(f"{path}: not a whole safetensors file: {reason}") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{path}: {key} is {tensor.dtype}; weights must be one of {', '.join(DTYPES)}; "
                "convert them where they came from (float8 and integers need their scales)"
            )
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, of the parts of an index, or of a Hugging Face folder, by our
    keys.

    Raises:
        UserError: damaged files, or keys that are somebody else's as a whole.
    """
    if not path.is_dir():
        if (whole := parts.whole_of_part(path)) is not None:
            raise UserError(
                f"{path}: is one of several files of these weights, and {whole.name}, which says "
                "what belongs together, is not beside it; fetch all of them"
            )
        tensors = read_parts(path) if parts.is_index(path) else read_header(path)
        _refuse_foreign_keys(tensors, path)
        return tensors
    folder = read_folder(path)
    if folder.wrapped:
        raise UserError(f"{path}: {_wrapped(folder.wrapped)}; llm-convert from-hf takes it off")
    return folder.tensors


def read_parts(path: Path) -> dict[str, Tensor]:
    """The tensors of all parts of an index.

    Raises:
        UserError: a part is missing or damaged, or holds other tensors than the index says.
    """
    index = parts.read_index(path)
    files = {name: parts.place(path, name) for name in index.names}
    if absent := [name for name, file in files.items() if not file.exists()]:
        raise UserError(f"{path}: names {absent[0]}, which is not there; use another tag")
    tensors: dict[str, Tensor] = {}
    for file in files.values():
        header = read_header(file)
        if twice := sorted(header.keys() & tensors.keys()):
            raise UserError(
                f"{file}: {twice[0]} is also in {tensors[twice[0]].file.name}, and each tensor "
                "must be there once; use another tag"
            )
        tensors |= header
    held = {key: tensor.file.name for key, tensor in tensors.items()}
    if odd := sorted({key for key, _ in held.items() ^ index.places.items()}):
        raise UserError(
            f"{path}: does not say where {odd[0]} is, or says it of another part; use another tag"
        )
    if (size := sum(tensor.nbytes for tensor in tensors.values())) != index.total_size:
        raise UserError(
            f"{path}: metadata.total_size is {index.total_size:,} bytes, and the tensors have "
            f"{size:,}; use another tag"
        )
    return tensors


def read_folder(folder: Path) -> Folder:
    """The tensors of a Hugging Face folder by our keys.

    Raises:
        UserError: damaged or missing files, a tensor that is there twice or in another file than
            the index says, or a head that contradicts `tie_word_embeddings`.
    """
    cfg = folder_config(folder)
    files, places = weight_files(folder)
    headers = {path: read_header(path) for path in files}
    astray = [f"{key} in {path.name}" for key, path in places.items() if key not in headers[path]]
    if astray:
        raise UserError(
            f"{folder}: tensors are not where the index says; fetch the files again:\n  missing "
            + "\n  missing ".join(astray)
        )
    tensors: dict[str, Tensor] = {}
    wrapped: set[str] = set()
    buffers = 0
    for path, header in headers.items():
        for name, tensor in header.items():
            parts = name.split(".")
            wrapped |= WRAPPERS.keys() & set(parts)
            bare = ".".join(part for part in parts if part not in WRAPPERS)
            key = our_key(bare) or bare
            if bare.endswith(BUFFER):
                buffers += 1
                continue
            if key in tensors:
                raise UserError(
                    f"{path}: {name} is also in {tensors[key].file.name}, and each tensor must be "
                    "there once; fetch the files again"
                )
            tensors[key] = tensor
    refuse_other_class(tensors, folder)
    if not cfg.tie_embeddings and TIED_KEY not in tensors and "tok_emb.weight" in tensors:
        raise UserError(
            f"{folder}: {CONFIG_JSON} has a head of its own (tie_word_embeddings=false), and there "
            "is no lm_head.weight; set tie_word_embeddings to true if the head is the embedding, "
            "or fetch the file that has it"
        )
    return Folder(tensors, sorted(wrapped), buffers)


def spelling(path: Path) -> Callable[[str], str]:
    """How messages about a file or folder spell our keys."""

    def theirs(key: str) -> str:
        try:
            return hf_key(key)
        except (ValueError, KeyError):  # it stands there as it is
            return key

    return theirs if path.is_dir() else str


def _wrapped(parts: list[str]) -> str:
    return "its keys have the part " + " and ".join(
        f"`{part}.`, which {WRAPPERS[part]} adds" for part in parts
    )


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """What stands before our name of the embedding."""
    name = "tok_emb.weight"
    return [key.removesuffix(name) for key in tensors if f".{key}".endswith(f".{name}")]


def _refuse_foreign_keys(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Name a file whose keys are not ours, where the list of all that differ would hide it."""
    found = {part for key in tensors for part in key.split(".")} & WRAPPERS.keys()
    if found:
        without = "".join(f'.replace("{part}.", "")' for part in sorted(found))
        raise UserError(
            f"{path}: {_wrapped(sorted(found))}; write the tensors again without it, "
            f"{{key{without}: value …}}"
        )
    if len(inside := _prefixes(tensors)) == 1 and inside != [""]:
        raise UserError(
            f"{path}: its keys begin with `{inside[0]}`, as those of a model inside another one; "
            f"write the tensors again without it, "
            f'{{key.removeprefix("{inside[0]}"): value …}}'
        )
    if any(our_key(key) not in (None, key) for key in tensors):
        raise UserError(
            f"{path}: its keys are those of a Hugging Face model; name its folder, "
            f"{path.parent}, which has the {CONFIG_JSON} too, or convert it with "
            "llm-convert from-hf"
        )
