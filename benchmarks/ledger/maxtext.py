"""MaxText beside ours: an environment of its own, and the same works by its configuration keys."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ledger.costs import costs_of
from ledger.works import Recompute, Work
from light_jax.reporting.program import counts_of, temporaries_on_tpu

PACKAGE = "maxtext[tpu]==0.2.5"
ENVIRONMENT = {  # compile for a TPU, look for none
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
SCRIPT = Path(__file__).with_name("maxtext_compile.py")
POLICIES: dict[Recompute, str] = {True: "full", "matmuls": "minimal_with_context"}
"""`recompute` of a work to MaxText's remat_policy."""


def make_environment(folder: Path, python: str) -> Path:
    """The python of MaxText's environment, which is made where there is none.

    Args:
        python: of version 3.12, which MaxText needs.
    """
    found = folder / "bin/python"
    is_there = [found, "-c", "import importlib.metadata as m; m.version('maxtext')"]
    if not found.exists() or subprocess.run(is_there, capture_output=True).returncode != 0:
        print(f"installing {PACKAGE} into {folder} …", flush=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        install = [found, "-m", "pip", "install", "--disable-pip-version-check", "-q", PACKAGE]
        subprocess.run(install, check=True)
    return found


def keys_of(work: Work, unrolled: bool) -> list[str]:
    """The work as MaxText's keys: the same shapes, precisions, optimizer and recomputation."""
    cfg = work.config()
    model, attention = cfg.model, cfg.model.attention
    assert cfg.gradient_accumulation_steps == work.tensor == 1
    values: dict[str, Any] = {
        "run_name": "ledger",
        "base_output_directory": "",
        "compile_topology": work.target,
        "compile_topology_num_slices": 1,
        "decoder_block": "llama2",
        "base_emb_dim": model.d_model,
        "base_num_query_heads": attention.num_heads,
        "base_num_kv_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "base_mlp_dim": model.ffn_dim,
        "base_num_decoder_layers": model.num_layers,
        "vocab_size": model.vocab_size,
        "logits_via_embedding": model.tie_embeddings,
        "max_target_length": cfg.seq_len,
        "per_device_batch_size": cfg.batch_size // work.devices,
        "ici_fsdp_parallelism": work.fsdp,
        "ici_data_parallelism": work.devices // work.fsdp,
        "dtype": cfg.dtype,
        "weight_dtype": "float32",
        "opt_type": "adamw",
        "attention": "flash",
        "remat_policy": POLICIES[work.recompute],
        "scan_layers": not unrolled,
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "skip_jax_distributed_system": True,
        "log_config": False,
    }
    return [f"{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in values.items()]


def compile_work(python: Path, work: Work, unrolled: bool, timeout: float) -> dict[str, Any]:
    """A record like that of our own step.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds.
        RuntimeError: it ended without compiling, and memory was not why.
    """
    # jax, where this process imported it, has put our libtpu into TPU_LIBRARY_PATH
    env = {**os.environ, **ENVIRONMENT}
    for ours in ("PYTHONPATH", "TPU_LIBRARY_PATH"):
        env.pop(ours, None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [python, "-P", SCRIPT, folder, *keys_of(work, unrolled)]
        done = subprocess.run(
            command, env=env, cwd=folder, capture_output=True, text=True, timeout=timeout
        )
        if not (folder / "facts.json").exists():
            raise RuntimeError(done.stderr[-2000:])
        facts = json.loads((folder / "facts.json").read_text())
        if "program" not in facts and "RESOURCE_EXHAUSTED" not in facts.get("error", ""):
            raise RuntimeError(facts.get("error", done.stderr)[-2000:])
        facts["fits"] = "program" in facts
        if facts["fits"]:
            text = (folder / "program.txt").read_text()
            sizes = facts["program"]
            sizes["temporaries"] = temporaries_on_tpu(
                temporaries=sizes["temporaries"],
                peak=sizes.pop("peak"),
                arguments=sizes["arguments"],
                new_outputs=sizes["outputs"] - sizes["aliased"],
            )
            facts["costs"] = vars(costs_of(text))
            kernels, collectives = counts_of(text)
            facts["program"]["attention"] = next(iter(kernels), "blocks")
            facts["program"]["attention_calls"] = sum(kernels.values())
            facts["program"]["collectives"] = {k: vars(found) for k, found in collectives.items()}
    return facts
