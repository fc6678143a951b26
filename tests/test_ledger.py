"""benchmarks/accelerators.py and scale_plan.py: what they count, and what they would compile."""

import json
import re
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

import scale_plan
from ledger import maxtext, plan, works
from ledger import table as pages
from ledger.alive import gathered
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


# Two gathers in a loop, the second begun after the first one's last use (a bitcast of it); and a
# combined one beside the loop, of whose two results one is read before the loop and one after it.
GATHERS = """HloModule made_by_hand, is_scheduled=true

%body (x: (f32[2], f32[4])) -> (f32[2], f32[4]) {
  %x = (f32[2]{0}, f32[4]{0}) parameter(0)
  %a = f32[2]{0} get-tuple-element(%x), index=0
  %b = f32[4]{0} get-tuple-element(%x), index=1
  %first = f32[16]{0} all-gather(%a), channel_id=1, dimensions={0}
  %view = f32[4,4]{1,0} bitcast(%first)
  %used = f32[4]{0} fusion(%view, %b), kind=kLoop, calls=%sum
  %second = f32[32]{0} all-gather(%used), channel_id=2, dimensions={0}
  %last = f32[2]{0} fusion(%second), kind=kLoop, calls=%sum
  ROOT %out = (f32[2]{0}, f32[4]{0}) tuple(%last, %used)
}

%condition (x: (f32[2], f32[4])) -> pred[] {
  %x = (f32[2]{0}, f32[4]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (p: f32[1], q: f32[8], x: (f32[2], f32[4])) -> f32[4] {
  %p = f32[1]{0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %x = (f32[2]{0}, f32[4]{0}) parameter(2)
  %start = ((f32[1]{0}, f32[8]{0}), (f32[8]{0}, f32[64]{0})) all-gather-start(%p, %q), channel_id=3
  %done = (f32[8]{0}, f32[64]{0}) all-gather-done(%start)
  %long = f32[8]{0} get-tuple-element(%done), index=0
  %short = f32[64]{0} get-tuple-element(%done), index=1
  %early = f32[4]{0} fusion(%short), kind=kLoop, calls=%sum
  %loop = (f32[2]{0}, f32[4]{0}) while(%x), condition=%condition, body=%body
  %z = f32[4]{0} get-tuple-element(%loop), index=1
  ROOT %end = f32[4]{0} fusion(%long, %z, %early), kind=kLoop, calls=%sum
}
"""


def test_what_is_gathered_counts_from_its_beginning_to_its_last_use():
    found = gathered(GATHERS)
    assert found.largest == 4 * 64
    assert found.alive == 4 * (8 + 64)  # more than 4 · (8 + 32) in the loop, where 16 are gone
    smaller = gathered(GATHERS.replace("f32[64]", "f32[9]"))
    assert (smaller.largest, smaller.alive) == (4 * 32, 4 * (8 + 32))


ALL_WORKS = {**works.BY_NAME, **plan.BY_NAME}


@pytest.mark.parametrize("work", ALL_WORKS.values(), ids=ALL_WORKS)
def test_each_work_is_a_legal_run_of_its_devices(work):
    family, _, number = work.target.rpartition("-")
    device = next(row for row in table() if row.name == family)
    assert device.has(int(number))
    cfg = work.config()
    assert work.devices % (cfg.mesh.fsdp * cfg.mesh.tensor) == 0
    assert cfg.batch_size % (work.devices // cfg.mesh.tensor) == 0
    assert cfg.model.attention.num_heads % cfg.mesh.tensor == 0
    assert ALL_WORKS[work.name] == work


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


def test_the_tables_of_the_scale_plan_are_those_of_its_records(tmp_path):
    """As they stand in docs/scale.md, with a row for each work that has a record."""
    page = tmp_path / "page.md"
    page.write_text(scale_plan.PAGE.read_text())
    scale_plan.write_page(page, scale_plan.RECORDS)
    drop_machine = lambda text: re.sub(r"^Compiled on .*$", "", text, flags=re.M)  # noqa: E731
    assert drop_machine(page.read_text()) == drop_machine(scale_plan.PAGE.read_text())
    records = [json.loads(line) for line in scale_plan.RECORDS.read_text().splitlines()]
    compiled = {record["work"] for record in records}
    assert compiled <= set(plan.BY_NAME)
    rows = [line for line in page.read_text().splitlines() if re.search(r"\| \d+ s \|$", line)]
    assert len(rows) == len(compiled & {work.name for work in plan.PLAN})


def test_a_layers_bytes_are_those_of_its_kernels():
    work = plan.BY_NAME["70b-b8-recomputed-fsdp8-tensor8/h100-64"]
    attention, ffn = 2 * 8192 * 8192 + 2 * 8192 * 1024, 3 * 8192 * 28672
    assert plan.layer_bytes(work) == 2 * (attention + ffn) // 8
