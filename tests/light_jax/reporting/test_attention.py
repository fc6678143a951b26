"""A run says which attention kernel it trains with, and why it is the portable one."""

import importlib.util

import jax
import pytest
from tiny_runs import write_config

from light_jax.config import load_config
from light_jax.parallel import targets
from light_jax.parallel.sharding import make_mesh
from light_jax.reporting.attention import attention_of

HAS_CUDA = any(importlib.util.find_spec(name) for name in targets._cuda_plugins())
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="JAX's CUDA wheels are not installed")


def told(tmp_path, devices, changes) -> str:
    cfg = load_config(write_config(tmp_path / "c.yaml", **{"dtype": "bfloat16"} | changes))
    attention = attention_of(cfg, make_mesh(cfg.mesh, devices))
    assert (attention.why is None) or (attention.kernel == "blocks")
    return str(attention)


def model(**attention) -> dict:
    return {"model": {"attention": attention}}


ALIBI = {"positional": {"encoding": "alibi"}}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({}, "splash"),
        (model(variant="complex", num_kv_heads=...), "splash"),
        ({"model": ALIBI}, "splash"),
        ({"dtype": "float32"}, "blocks of queries: dtype is float32"),
        (model(dropout=0.1), "blocks of queries: attention.dropout is set"),
        (model(document_mask=True), "splash"),
        (
            {"model": ALIBI | {"attention": {"mask_type": "bidirectional"}}},
            "blocks of queries: alibi with mask_type bidirectional",
        ),
    ],
)
def test_on_a_tpu(tmp_path, changes, says):
    assert told(tmp_path, targets.target("v5e-1").devices, changes) == says


@needs_cuda
@pytest.mark.parametrize(
    "changes, says",
    [
        ({}, "cudnn"),
        ({"dtype": "float16", "model": ALIBI}, "blocks of queries: alibi with dtype float16"),
        (
            model(document_mask=True),
            "blocks of queries: attention.document_mask is set, which cuDNN has no kernel for",
        ),
        (model(head_dim=12), "cudnn"),
        (model(head_dim=136), "blocks of queries: queries and keys are 136 wide"),
        (
            {"model": ALIBI | {"attention": {"head_dim": 128}}},
            "blocks of queries: alibi with queries and keys that are 128 wide",
        ),
    ],
)
def test_on_an_ampere_gpu(tmp_path, changes, says):
    assert told(tmp_path, targets.target("a100-1").devices, changes) == says


def test_on_a_cpu_blocks_need_no_reason(tmp_path):
    assert told(tmp_path, jax.devices()[:1], model(dropout=0.1)) == "blocks of queries"
