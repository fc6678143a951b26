"""A Hugging Face model -> OUT.safetensors, OUT.config.json, OUT.tokenizer/: `llm-convert from-hf`.

No number changes and none is computed: tensors get our keys, and their bytes are copied from file
to file. So the memory that it takes is that of a buffer.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conversion.mapping import TIED_KEY
from conversion.weights import check_keys, check_tied
from light_llm.checkpoint.digests import digest
from light_llm.checkpoint.folder import folder_config, folder_snapshot
from light_llm.checkpoint.hub import NAME, fetch_model
from light_llm.checkpoint.layout import CONFIG, WEIGHTS, Files, locate
from light_llm.checkpoint.reading import Record, seal
from light_llm.checkpoint.tensors import WRAPPERS, Folder, Reader, Tensor, read_folder, spelling
from light_llm.errors import UserError
from light_llm.files import disk, given, tensor_file
from light_llm.files.tensor_file import Spec
from light_llm.models.transformer.config import TransformerConfig

TOKENIZER = ".tokenizer"
"""The ending of the folder beside the weights that holds the tokenizer."""
MARK = {"light_llm": "from-hf"}
"""In the metadata of the weights file: an import wrote it, so another may replace it."""
BUFFER = 1 << 22
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def import_model(source: str, out: str) -> list[str]:
    """Read the folder of a Llama, Mistral, Qwen2 or Qwen3 model, or the hub's model of this name.

    The weights keep their types. An earlier import at OUT is replaced.

    Returns:
        The lines to print.

    Raises:
        UserError: the model cannot be read or is not ours, or OUT is taken. Nothing was written.
    """
    folder = _folder(source)
    cfg = folder_config(folder)
    read = read_folder(folder)
    shapes = {key: tensor.shape for key, tensor in read.tensors.items()}
    check_keys(shapes, cfg, folder, spelling(folder))
    _check_head(folder, cfg, read.tensors)
    files = _target(out)
    notes = _notes(read, cfg)
    with _staged(files) as stage:
        notes = [*_write(stage, files, folder, cfg, read.tensors), *notes]
        _target(out)  # it may have been used since
        _publish(stage, files)
    return [*notes, "a config that trains it has this section:", *_yaml(cfg)]


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(
            f"{source}: is not a folder; name the folder that has the model's config.json and "
            "safetensors"
        )
    parts = folder.parts
    if NAME.fullmatch(source) and not (len(parts) > 1 and Path(parts[0]).exists()):
        return fetch_model(source)
    raise UserError(
        f"{source}: there is no such folder (looked from {Path.cwd()}); name a model's folder, or "
        "a model of the Hugging Face hub, as in HuggingFaceTB/SmolLM2-135M"
    )


def _check_head(folder: Path, cfg: TransformerConfig, tensors: Mapping[str, Tensor]) -> None:
    """Compare a tied head, where the files have one, with the embedding."""
    if cfg.tie_embeddings and TIED_KEY in tensors:
        import ml_dtypes  # noqa: F401  (numpy then has bfloat16)

        with Reader(tensors, "numpy") as stored:
            check_tied(stored.whole("tok_emb.weight"), stored.whole(TIED_KEY), folder)


def _target(out: str) -> Files:
    """Where the import goes.

    Raises:
        UserError: something is there that no import wrote.
    """
    files = locate(out)
    if not files.tag or Path(out).is_dir():
        raise UserError(
            f"{out}: is a folder; name files in it, as in {Path(out) / 'model'}, which become "
            f"model{WEIGHTS} and model{CONFIG}"
        )
    taken = [files.state, _tokenizer(files), files.config, files.weights]
    there = [path for path in taken if path.exists() or path.is_symlink()]
    if there and not _imported(files):
        raise UserError(
            f"{there[-1]}: is there, and no earlier import wrote it; use another name, or move it "
            "away"
        )
    return files


def _imported(files: Files) -> bool:
    """Whether an import wrote the files that are there."""
    if files.state.exists() or not files.weights.is_file() or files.weights.is_symlink():
        return False
    with contextlib.suppress(UserError):
        return MARK.items() <= _header(files.weights).get("__metadata__", {}).items()
    return False


def _tokenizer(files: Files) -> Path:
    return files.prefix.with_name(files.tag + TOKENIZER)


def _notes(read: Folder, cfg: TransformerConfig) -> list[str]:
    notes = []
    for part in read.wrapped:
        notes.append(f"note: `{part}.`, which {WRAPPERS[part]} adds, was taken off the keys")
    if read.buffers:
        notes.append(
            f"note: {read.buffers} rotary_emb.inv_freq left out: the config says the frequencies"
        )
    if cfg.tie_embeddings and TIED_KEY in read.tensors:
        notes.append("note: lm_head.weight left out: it is model.embed_tokens.weight (tied)")
    return notes


@contextlib.contextmanager
def _staged(files: Files) -> Iterator[Path]:
    """A hidden folder beside the target, gone at the end, however that comes.

    Raises:
        UserError: another import writes there.
    """
    stage = files.prefix.with_name(f".{files.tag}.importing")
    busy = f"{files.prefix}: another llm-convert writes there; let it end first"
    with disk.held(stage, busy), disk.naming(files.prefix):
        try:
            for path in stage.iterdir():  # of an import that was killed
                disk.remove(path)
            yield stage
        finally:
            disk.remove(stage)


def _write(
    stage: Path,
    files: Files,
    folder: Path,
    cfg: TransformerConfig,
    tensors: Mapping[str, Tensor],
) -> list[str]:
    """Write the three into the stage, and flush them; the lines that say so."""
    kept = {key: tensor for key, tensor in tensors.items() if key != TIED_KEY}
    if not cfg.tie_embeddings:
        kept[TIED_KEY] = tensors[TIED_KEY]
    weights = stage / WEIGHTS
    _write_weights(weights, kept)
    dtypes = ", ".join(sorted({tensor.dtype for tensor in kept.values()}))
    lines = [f"{files.prefix}{WEIGHTS}: {len(kept)} tensors, {dtypes}"]
    named, line = _write_tokenizer(stage, files, folder)
    snapshot = {
        "tokenizer_path": named,
        "model": cfg.model_dump(),
        "checkpoint": Record(files={WEIGHTS: digest(weights)}).model_dump(),
    }
    (stage / CONFIG).write_text(json.dumps(seal(snapshot), indent=2) + "\n")
    disk.flush(stage)
    return [*lines, line]


def _write_tokenizer(stage: Path, files: Files, folder: Path) -> tuple[str | None, str]:
    """(`tokenizer_path`, the line that says so)."""
    from light_llm.tokenizer import load_tokenizer

    if folder_snapshot(folder)["tokenizer_path"] is None:
        return None, f"note: {folder} has no tokenizer; llm-run will need --tokenizer PATH"
    try:
        tokenizer = load_tokenizer(folder, fetch=False)
    except UserError as error:
        return None, f"note: the tokenizer was not taken: {error}"
    tokenizer.save(stage / TOKENIZER)
    place = str(_tokenizer(files))
    return place, f"{place}: its tokenizer of {tokenizer.vocab_size} ids"


def _write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The tensors under their new keys in one file."""
    places = {file: _places(file) for file in {tensor.file for tensor in tensors.values()}}

    def data(key: str) -> Iterator[bytes]:
        tensor = tensors[key]
        with given.open_regular(tensor.file, "the weights file") as file:
            first, last = places[tensor.file][tensor.name]
            file.seek(first)
            while (rest := last - file.tell()) > 0:
                yield _some(file.read(min(rest, BUFFER)), tensor.file)

    specs = {key: Spec(tensor.dtype, tensor.shape) for key, tensor in tensors.items()}
    tensor_file.write(path, specs, {"format": "pt"} | MARK, data)


def _some(data: bytes, path: Path) -> bytes:
    if not data:
        raise UserError(f"{path}: was cut short while it was read; import it again")
    return data


def _header(path: Path) -> dict[str, Any]:
    """The header of a file that safetensors has found to be whole."""
    with given.open_regular(path, "the weights file") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > given.LARGE:
            raise UserError(f"{path}: not a whole safetensors file: its header is too long")
        header = given.parse_json(file.read(size), path)
    return header if isinstance(header, dict) else {}


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """(first byte, one after the last) of each tensor, in the file."""
    with given.open_regular(path, "the weights file") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    header = _header(path)
    header.pop("__metadata__", None)
    return {
        name: (start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for name, entry in header.items()
    }


def _publish(stage: Path, files: Files) -> None:
    """Move what was written into its place; config.json goes first and comes last, so that where it
    stands all are whole. Signals wait for the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        files.config.unlink(missing_ok=True)
        (stage / WEIGHTS).rename(files.weights)
        if _tokenizer(files).exists():
            shutil.rmtree(_tokenizer(files))
        if (stage / TOKENIZER).exists():
            (stage / TOKENIZER).rename(_tokenizer(files))
        disk.sync(files.directory)
        (stage / CONFIG).rename(files.config)
        disk.sync(files.directory)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _yaml(cfg: TransformerConfig) -> list[str]:
    """The section `model` as a config file has it: what is not the default."""
    import yaml

    text = yaml.safe_dump(
        {"model": _beside_defaults(cfg.model_dump(), TransformerConfig().model_dump())},
        sort_keys=False,
        default_flow_style=None,
        width=100,
    )
    return text.splitlines()


def _beside_defaults(section: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values that differ from the defaults, and `vocab_size`, whose default may be another."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            if inner := _beside_defaults(value, default):
                found[key] = inner
        elif value != default or key in ("vocab_size", "num_kv_heads", "head_dim"):
            found[key] = value
    return found
