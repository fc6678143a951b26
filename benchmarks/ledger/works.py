"""What the ledger compiles: models, and on which devices in which mesh."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from light_jax.config import TrainingConfig, load_config

Recompute = Literal[False, True, "matmuls"]

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = {
    "small": FOLDER / "small.yaml",
    "medium": FOLDER / "medium.yaml",
    "complex": FOLDER / "experiment_complex_attn.yaml",
}
SHAPES: dict[str, dict[str, Any]] = {
    "1.2b": {  # 1.19 B parameters
        "seq_len": 2048,
        "model": {
            "vocab_size": 32000,
            "max_seq_len": 2048,
            "d_model": 2048,
            "num_layers": 24,
            "tie_embeddings": False,
            "attention": {"variant": "gqa", "num_heads": 16, "num_kv_heads": 4},
            "ffn": {"variant": "swiglu", "expansion_factor": 5504 / 2048},
        },
    },
    "7b": {  # 7.24 B parameters, the shape of Mistral 7B
        "seq_len": 4096,
        "model": {
            "vocab_size": 32000,
            "max_seq_len": 4096,
            "d_model": 4096,
            "num_layers": 32,
            "tie_embeddings": False,
            "attention": {"variant": "gqa", "num_heads": 32, "num_kv_heads": 8},
            "ffn": {"variant": "swiglu", "expansion_factor": 14336 / 4096},
        },
    },
    "70b": {  # 70.6 B parameters, the shape of Llama 3 70B
        "seq_len": 8192,
        "model": {
            "vocab_size": 128256,
            "max_seq_len": 8192,
            "d_model": 8192,
            "num_layers": 80,
            "tie_embeddings": False,
            "attention": {"variant": "gqa", "num_heads": 64, "num_kv_heads": 8},
            "ffn": {"variant": "swiglu", "ffn_dim": 28672},
        },
    },
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One step on one kind of devices."""

    model: str
    target: str
    batch: int | None = None  # sequences a micro-batch, all devices together; None as the config
    recompute: Recompute = False
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    seq_len: int | None = None  # None as the config

    @property
    def name(self) -> str:
        """`medium-b16-recomputed/v5e-1`, `1.2b-b16-recomputed-fsdp8/v5e-8`."""
        parts = [
            self.model,
            f"b{self.batch}" if self.batch else "",
            f"t{self.seq_len}" if self.seq_len else "",
            {False: "", True: "recomputed", "matmuls": "matmuls"}[self.recompute],
            f"fsdp{self.fsdp}" if self.fsdp > 1 else "",
            f"tensor{self.tensor}" if self.tensor > 1 else "",
        ]
        return "-".join(part for part in parts if part) + f"/{self.target}"

    @property
    def is_gpu(self) -> bool:
        return not self.target.startswith(("v", "tpu"))

    @property
    def devices(self) -> int:
        """Their number; the names of v5p count cores, two a device."""
        family, _, number = self.target.rpartition("-")
        return int(number) // (2 if family == "v5p" else 1)

    def config(self) -> TrainingConfig:
        """The run that is compiled; only its step matters."""
        if self.model in CONFIGS:
            cfg = load_config(CONFIGS[self.model])
        else:
            cfg = TrainingConfig.model_validate({"train_data": "none", **SHAPES[self.model]})
        mesh = cfg.mesh.model_copy(
            update={"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        )
        changes: dict[str, Any] = {"mesh": mesh}
        if self.batch is not None:
            changes |= {"batch_size": self.batch, "gradient_accumulation_steps": 1}
        model: dict[str, Any] = {}
        if self.recompute:
            model["gradient_checkpointing"] = self.recompute
        if self.seq_len is not None:
            changes["seq_len"] = model["max_seq_len"] = self.seq_len
        if model:
            changes["model"] = cfg.model.model_copy(update=model)
        return cfg.model_copy(update=changes)


def _shipped(model: str, *targets: str) -> list[Work]:
    return [Work(model, target) for target in targets]


WORKS: tuple[Work, ...] = (
    *_shipped("small", "v5e-1", "v5e-8", "v5p-16", "h100-1", "h100-8"),
    *_shipped("medium", "v5e-1", "v5e-8", "v5p-16", "h100-1", "h100-8"),
    *_shipped("complex", "v5e-1", "v5e-8", "h100-1", "h100-8"),
    *(
        Work("medium", target, batch, recompute)
        for target in ("v5e-1", "h100-1")
        for batch, recompute in ((4, False), (4, True), (16, True), (16, "matmuls"))
    ),
    Work("1.2b", "v5e-8", 16, True, fsdp=8),
    Work("1.2b", "v5p-16", 32, True, fsdp=8),
    Work("1.2b", "h100-8", 16, True, fsdp=8),
    Work("1.2b", "h100-8", 16, True, fsdp=4, tensor=2),
    # one sequence a device; what does not fall with their number is not divided by fsdp
    Work("7b", "v5p-8", 4, True, fsdp=4),
    Work("7b", "v5p-16", 8, True, fsdp=8),
    Work("7b", "v5p-32", 16, True, fsdp=16),
    Work("7b", "h100-8", 8, True, fsdp=8),
)
BY_NAME = {work.name: work for work in WORKS}

PEER_WORKS = tuple(
    BY_NAME[name]
    for name in (
        "medium-b4-recomputed/v5e-1",
        "medium-b16-recomputed/v5e-1",
        "medium-b16-matmuls/v5e-1",
        "1.2b-b16-recomputed-fsdp8/v5e-8",
        "1.2b-b32-recomputed-fsdp8/v5p-16",
    )
)
"""Those that are compiled in MaxText too."""
