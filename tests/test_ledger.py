"""benchmarks/accelerators.py: what it counts, and what it would compile."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_runs import ROOT

from light_jax.parallel.targets import compiling_for, table, target

sys.path.insert(0, str(ROOT / "benchmarks"))

from ledger import maxtext, works
from ledger import table as pages
from ledger.costs import costs_of


def test_flops_of_matmuls_count_as_often_as_their_loop_runs():
    """A batched matmul and a plain one, four times, and the sine of the result."""

    def loop(x_BMK, w_BKN, v_NK):
        def body(x_BMK, _):
            y_BMN = jnp.einsum("bmk,bkn->bmn", x_BMK, w_BKN)
            return jnp.sin(jnp.einsum("bmn,nk->bmk", y_BMN, v_NK)), None

        return jax.lax.scan(body, x_BMK, None, length=4)[0]

    there = target("v5e-1")
    whole = NamedSharding(Mesh(there.devices, ("x",)), PartitionSpec())
    shapes = [(4, 256, 128), (4, 128, 512), (512, 128)]
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=whole) for shape in shapes]
    with compiling_for(there):
        found = costs_of(jax.jit(loop).lower(*args).compile().as_text())
    assert found.matmul_flops == 4 * 2 * (2 * 4 * 256 * 128 * 512)
    assert found.other_flops >= 4 * 4 * 256 * 128
    assert found.fusions >= 4
    assert found.custom_calls == 0


# A library's matmul, and a dot inside a fusion, as they stand in the program of a GPU.
GPU = """HloModule made_by_hand

%fused (a: f32[4,8], b: f32[8,16]) -> f32[4,16] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  %dot.1 = f32[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %exp = f32[4,16]{1,0} exponential(%dot.1)
}

ENTRY %main (a: f32[4,8], b: f32[8,16], c: f32[16,32]) -> f32[4,32] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  %c = f32[16,32]{1,0} parameter(2)
  %d = f32[4,16]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused
  %e = (f32[4,32]{1,0}, s8[64]{0}) custom-call(%d, %c), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{\
"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %out = f32[4,32]{1,0} get-tuple-element(%e), index=0
}
"""


def test_a_librarys_matmul_and_one_in_a_fusion_count():
    found = costs_of(GPU)
    assert found.matmul_flops == 2 * 4 * 8 * 16 + 2 * 4 * 16 * 32
    assert (found.other_flops, found.fusions, found.custom_calls) == (4 * 16, 1, 1)


@pytest.mark.parametrize("work", works.WORKS, ids=lambda work: work.name)
def test_each_work_is_a_legal_run_of_its_devices(work):
    family, _, number = work.target.rpartition("-")
    device = next(row for row in table() if row.name == family)
    assert device.has(int(number))
    cfg = work.config()
    assert work.devices % (cfg.mesh.fsdp * cfg.mesh.tensor) == 0
    assert cfg.batch_size % (work.devices // cfg.mesh.tensor) == 0
    assert works.BY_NAME[work.name] == work


def test_the_peer_gets_the_same_shapes():
    work = works.BY_NAME["1.2b-b32-recomputed-fsdp8/v5p-16"]
    keys = dict(key.split("=") for key in maxtext.keys_of(work, unrolled=True))
    assert keys["base_mlp_dim"] == "5504"
    assert keys["per_device_batch_size"] == "4"
    assert (keys["remat_policy"], keys["scan_layers"]) == ("full", "false")
    assert (keys["ici_fsdp_parallelism"], keys["ici_data_parallelism"]) == ("8", "1")


def test_the_page_has_a_row_for_each_work_and_ratios():
    program = {
        "arguments": 2**30,
        "temporaries": 2**31,
        "bytes_accessed": 3e9,
        "attention": "splash",
        "attention_calls": 24,
        "collectives": {"all-gather": {"count": 7, "bytes": 2e9}},
    }
    costs = {"fusions": 1000, "custom_calls": 24, "matmul_flops": 99e12, "other_flops": 1e12}
    name = works.PEER_WORKS[0].name
    ours = {"work": name, "by": "ours", "unrolled": True, "commit": "abc", "date": "2026-01-01"}
    ours |= {"compile_seconds": 40.0, "fits": True, "needed": 3 * 2**30, "limit": 2**34}
    ours |= {"program": program, "costs": costs, "versions": {"jax": "0.10.2"}}
    theirs = ours | {"by": "maxtext", "compile_seconds": 80.0}
    page = pages.page([ours, theirs])
    assert all(f"| {work.name} | " in page for work in works.WORKS)
    assert "| 40 s | 1.00 GiB | 2.00 GiB | yes: 3.0 of 16.0 | 3.0 GB | 1,000 + 24 |" in page
    assert "99.00 T, 99.0 % | gather 7 (2.00 GB) | splash × 24 |" in page
    assert "| 40 s / 80 s | **0.50** | – / – | – | 2.00 GiB / 2.00 GiB | **1.00** |" in page


def test_a_record_is_kept_and_the_page_written_anew(tmp_path):
    script = [sys.executable, ROOT / "benchmarks/accelerators.py", "--table"]
    script += ["--records", tmp_path / "records.jsonl", "--results", tmp_path / "page.md"]
    failed = {"work": "small/v5e-1", "by": "ours", "unrolled": False, "commit": "abc"}
    failed |= {"date": "2026-01-01", "error": "Traceback\nBroken: no memory"}
    Path(tmp_path / "records.jsonl").write_text(json.dumps(failed) + "\n")
    done = subprocess.run(script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "- `small/v5e-1` (ours): Broken: no memory" in (tmp_path / "page.md").read_text()
