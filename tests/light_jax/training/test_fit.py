"""Whether a step fits, and the largest batch that does, found by compiling and never by running."""

import contextlib
import re

import jax
import pytest
from tiny_runs import write_config

from light_jax.config import load_config
from light_jax.parallel.sharding import make_mesh
from light_jax.parallel.targets import compiling_for, target
from light_jax.training.fit import Fit, _largest, measure
from light_jax.training.memory import Room, StepMemory, check_step
from light_llm.errors import UserError

pytestmark = pytest.mark.compiled_fully

GiB = 2**30
LIMIT = 4 * 2**20
SMALL = {"num_layers": 1}


def config(tmp_path, **changes):
    return load_config(write_config(tmp_path / "c.yaml", **changes))


def measure_here(cfg, limit: int | None, **kwargs) -> Fit:
    there = None if limit is None else Room(limit, "it holds")
    return measure(cfg, make_mesh(cfg.mesh, jax.devices()[:1]), there, **kwargs)


def measure_for(name: str, cfg, **kwargs) -> Fit:
    there = target(name)
    with compiling_for(there):
        mesh = make_mesh(cfg.mesh, there.devices)
        return measure(cfg, mesh, Room(there.memory_limit, "it holds"), **kwargs)


def linear(fixed: int, per_row: int, refuses_at: int | None = None):
    """A compiler whose programs take fixed + per_row · batch bytes; it lists what it compiled."""
    tried = []

    def attempt(batch: int) -> StepMemory:
        tried.append(batch)
        refused = refuses_at is not None and fixed + per_row * batch > refuses_at
        return StepMemory(fixed, per_row * batch, refused)

    return attempt, tried


@pytest.mark.parametrize("refuses_at", [None, 1000])
@pytest.mark.parametrize("start, compilations", [(4, 2), (8, 2), (80, 1), (400, 2)])
def test_the_largest_batch_is_found_where_the_line_meets_the_limit(start, compilations, refuses_at):
    attempt, tried = linear(200, 10, refuses_at)
    assert _largest(attempt, start, attempt(start), 200, 4, 1000) == 80
    assert len(tried) == compilations


@pytest.mark.parametrize("fixed", [0, 100, 300, 900])
def test_a_wrong_guess_of_what_is_fixed_costs_compilations_and_not_exactness(fixed):
    attempt, tried = linear(200, 10)
    assert 72 <= _largest(attempt, 10, attempt(10), fixed, 1, 1000) <= 80
    assert len(tried) <= 4


def test_no_batch_fits_where_the_smallest_does_not():
    attempt, tried = linear(200, 1000)
    assert _largest(attempt, 8, attempt(8), 200, 4, 1000) == 0
    assert tried == [8, 4]


def test_here_the_largest_batch_fits_and_the_next_does_not(tmp_path):
    cfg, seen = config(tmp_path, model=SMALL), []

    def progress(what: str):
        seen.append(what)
        return contextlib.nullcontext()

    found = measure_here(cfg, LIMIT, progress=progress)
    assert found.memory.fits(LIMIT)
    assert found.largest_batch_size > cfg.batch_size
    assert seen[0] == f"batch_size {cfg.batch_size}"
    assert f"batch_size {found.largest_batch_size}" in seen
    assert found.program.attention == "blocks"
    assert found.program.collectives == {}
    kv = cfg.model.attention.num_kv_heads * cfg.model.attention.head_dim
    layer = 2 * 32 * 32 + 2 * 32 * kv + 3 * 32 * cfg.model.ffn_dim + 2 * 32
    params = 131 * 32 + layer + 32
    tokens = cfg.batch_size * cfg.seq_len
    assert found.flops_per_step == tokens * (6 * params + 12 * 32 * cfg.seq_len)
    step = max(1, found.largest_batch_size // 8)
    beyond = cfg.model_copy(update={"batch_size": found.largest_batch_size + step})
    assert not measure_here(beyond, LIMIT, largest=False).memory.fits(LIMIT)


def test_for_a_tpu_the_step_is_compiled_over_the_mesh(tmp_path):
    cfg = config(tmp_path, dtype="bfloat16", mesh={"data": 2, "fsdp": 2}, model=SMALL)
    found = measure_for("v5e-4", cfg, largest=False)
    assert found.largest_batch_size is None
    assert found.program.attention == "splash"
    assert found.program.collectives["all-gather"].count > 0
    assert 0 < found.memory.temporaries < found.memory.total < 64 * 2**20
    assert found.program.flops > 0


def test_a_step_that_a_tpu_cannot_hold_is_refused_with_the_bytes_that_it_asks_for(tmp_path):
    """The compiler names them, so the largest batch is one more compilation away."""
    cfg = config(
        tmp_path,
        dtype="bfloat16",
        batch_size=2**18,
        seq_len=128,
        model={"num_layers": 1, "max_seq_len": 128},
    )
    found = measure_for("v5e-1", cfg, largest=False)
    assert (found.program, found.attention) == (None, "splash")
    memory = found.memory
    assert memory.refused
    assert memory.arguments > 4 * cfg.batch_size * (cfg.seq_len + 1)
    assert 16 * GiB < memory.temporaries < memory.total < 1024 * GiB
    mesh, there = make_mesh(cfg.mesh, target("v5e-1").devices), Room(int(15.75 * GiB), "it holds")
    with pytest.raises(UserError) as refusal:
        check_step(cfg, mesh, memory, there, resuming=False)
    assert re.match(
        r"the step takes [\d.]+ GiB per device where it holds 15\.8 GiB: [\d.]+ MiB of arguments "
        r"\(state and tokens\) and [\d.]+ GiB of temporaries, and the compiler refuses it; use "
        r"`batch_size: \d+, gradient_accumulation_steps: \d+` ",
        str(refusal.value),
    )


def test_a_batch_that_does_not_suit_is_refused(tmp_path):
    with pytest.raises(UserError, match="batch_size=6"):
        measure_for("v5e-4", config(tmp_path, batch_size=6))


def test_without_a_limit_no_largest_batch_is_sought(tmp_path):
    assert measure_here(config(tmp_path, model=SMALL), None).largest_batch_size is None


def test_gradient_checkpointing_lowers_the_steps_memory(tmp_path):
    without, with_it = (
        measure_here(
            config(
                tmp_path,
                seq_len=128,
                model={
                    "max_seq_len": 128,
                    "num_layers": 4,
                    "gradient_checkpointing": checkpointing,
                },
            ),
            None,
            largest=False,
        )
        for checkpointing in (False, True)
    )
    assert with_it.memory.temporaries < 0.65 * without.memory.temporaries
