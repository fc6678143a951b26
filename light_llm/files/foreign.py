"""Weights of other programs, named for what they are; at most their first bytes are read."""

from __future__ import annotations

from pathlib import Path

from light_llm.files import given

_WRITE = "; write its tensors to a .safetensors where it came from"
_MAGIC = {
    b"\x80": "a pickle",
    b"GGUF": "a GGUF file" + _WRITE,
    b"\x89HDF": "an HDF5 file" + _WRITE,
    b"PAR1": "a parquet file" + _WRITE,
    given.LFS: given.POINTER,
}
_ZIP = b"PK\x03\x04"
_RUNS_CODE = (
    ", which is not opened here, since a pickle can run code; write its tensors to a .safetensors "
    "with safetensors.torch.save_file where it came from"
)
_FOLDERS = (
    (
        ("*.distcp",),
        "the shards of torch.distributed.checkpoint (FSDP); join them with `python -m torch."
        "distributed.checkpoint.format_utils dcp_to_torch DIR FILE`, and write the tensors to a "
        ".safetensors",
    ),
    (
        ("zero_to_fp32.py", "*zero_pp_rank_*", "mp_rank_*_model_states.pt"),
        "a sharded checkpoint of DeepSpeed; join it with its zero_to_fp32.py "
        "(--safe_serialization), and name what that writes",
    ),
    (
        ("manifest.ocdbt", "_CHECKPOINT_METADATA", "_METADATA"),
        "a checkpoint of Orbax, as MaxText writes it" + _WRITE,
    ),
    (("*.msgpack",), "weights of Flax" + _WRITE),
    (("*.ckpt.index", "*.h5"), "weights of TensorFlow" + _WRITE),
    (("*.gguf",), "a model of llama.cpp (GGUF); take the one that it was made from"),
)
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")


def foreign_file(path: Path) -> str | None:
    """The format of a foreign weights file, and what to do: the end of a sentence."""
    with given.open_regular(path) as file:
        head = file.read(512)
    if head.startswith(_ZIP):
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if name.endswith(b".npy"):
            return "a file of numpy.savez" + _WRITE
        return "a file of torch.save, a pickle inside a zip" + _RUNS_CODE
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    return kind and (kind + _RUNS_CODE if kind == "a pickle" else kind)


def foreign_folder(folder: Path) -> str | None:
    """What a folder of another program holds, and what to do: the end of a sentence."""
    for patterns, kind in _FOLDERS:
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return kind
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return f"pickles ({some(pickles)}){_RUNS_CODE.replace('which is', 'which are')}"
    if parts := sorted(path.name for path in folder.glob("*-of-*.safetensors")):
        return (
            f"parts of weights ({some(parts)}) without their .safetensors.index.json, which says "
            "what belongs together; fetch it too"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    return f"{some(others)}; name one of these files" if others else None


def some(names: list[str]) -> str:
    """A few of the names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
