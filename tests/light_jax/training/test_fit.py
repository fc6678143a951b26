"""Whether a step fits, and the largest batch that does, found by compiling and never by running."""

import jax
import pytest
from tiny_runs import write_config

from light_jax.config import load_config
from light_jax.parallel.targets import compiling_for, target
from light_jax.reporting.program import Program
from light_jax.training.fit import Fit, _largest, _refused_bytes, _Tried, measure
from light_llm.errors import UserError

GiB = 2**30
LIMIT = 4 * 2**20


def config(tmp_path, **changes):
    return load_config(write_config(tmp_path / "c.yaml", **changes))


def measure_for(name: str, cfg, **kwargs) -> Fit:
    there = target(name)
    with compiling_for(there):
        return measure(cfg, there.devices, there.memory_limit, **kwargs)


def linear(fixed: int, per_row: int, refuses_at: int | None = None):
    """A compiler whose programs take fixed + per_row · batch bytes; it lists what it compiled."""
    tried = []

    def attempt(batch: int) -> _Tried:
        tried.append(batch)
        total = fixed + per_row * batch
        if refuses_at is not None and total > refuses_at:
            return _Tried(None, total)
        return _Tried(Program(fixed, per_row * batch, 0, 0, "blocks", 0, {}, None, None), total)

    return attempt, tried


@pytest.mark.parametrize("refuses_at", [None, 1000])
@pytest.mark.parametrize("start", [4, 8, 80, 400])
def test_the_largest_batch_is_found_where_the_line_meets_the_limit(start, refuses_at):
    attempt, tried = linear(200, 10, refuses_at)
    found = _largest(attempt, start, attempt(start), 200, 4, 1000)
    assert found == 80
    assert len(tried) <= 4


def test_no_batch_fits_where_the_state_or_the_smallest_does_not():
    attempt, tried = linear(200, 10)
    assert _largest(attempt, 4, attempt(4), 1001, 4, 1000) is None
    assert tried == [4]
    attempt, tried = linear(200, 1000)
    assert _largest(attempt, 8, attempt(8), 200, 4, 1000) is None
    assert tried == [8, 4]


def test_what_a_compiler_asked_for_in_vain_is_read():
    used = "Ran out of memory in memory space hbm. Used 26.60G of 15.75G hbm. Exceeded by 10.85G."
    assert _refused_bytes(used) == int(26.6 * GiB)
    temporaries = "the total memory required for HLO temporaries (39.41G) exceeds available HBM"
    assert _refused_bytes(temporaries) == int(39.41 * GiB)
    assert _refused_bytes("something else") is None


def test_here_the_largest_batch_fits_and_the_next_does_not(tmp_path):
    cfg = config(tmp_path, model={"num_layers": 1})
    found = measure(cfg, jax.devices()[:1], LIMIT)
    assert found.fits
    assert found.largest_batch_size > cfg.batch_size
    assert found.program.attention == "blocks"
    assert found.program.collectives == {}
    kv = cfg.model.attention.num_kv_heads * cfg.model.attention.head_dim
    layer = 2 * 32 * 32 + 2 * 32 * kv + 3 * 32 * cfg.model.ffn_dim + 2 * 32
    params = 131 * 32 + layer + 32
    tokens = cfg.batch_size * cfg.seq_len
    assert found.flops_per_step == tokens * (6 * params + 12 * 32 * cfg.seq_len)
    step = max(1, found.largest_batch_size // 8)
    beyond = cfg.model_copy(update={"batch_size": found.largest_batch_size + step})
    assert not measure(beyond, jax.devices()[:1], LIMIT, largest=False).fits


def test_for_a_tpu_the_step_is_compiled_over_the_mesh(tmp_path):
    cfg = config(tmp_path, dtype="bfloat16", mesh={"data": 2, "fsdp": 2}, model={"num_layers": 1})
    found = measure_for("v5e-4", cfg, largest=False)
    assert found.fits
    assert found.largest_batch_size is None
    assert found.program.collectives["all-gather"].count > 0
    assert found.program.total < 64 * 2**20
    assert found.program.flops > 0


def test_a_step_that_a_tpu_cannot_hold_is_refused_with_the_bytes_that_it_asks_for(tmp_path):
    cfg = config(
        tmp_path,
        dtype="bfloat16",
        batch_size=2**18,
        seq_len=128,
        model={"num_layers": 1, "max_seq_len": 128},
    )
    found = measure_for("v5e-1", cfg, largest=False)
    assert (found.fits, found.program) == (False, None)
    assert found.needed > found.limit == 15.75 * GiB


def test_a_mesh_or_batch_that_does_not_suit_is_refused(tmp_path):
    with pytest.raises(UserError, match="mesh="):
        measure_for("v5e-4", config(tmp_path, mesh={"data": 3}))
    with pytest.raises(UserError, match="batch_size=6"):
        measure_for("v5e-4", config(tmp_path, batch_size=6))


def test_without_a_limit_it_is_not_known_whether_it_fits(tmp_path):
    found = measure(config(tmp_path, model={"num_layers": 1}), jax.devices()[:1], None)
    assert isinstance(found, Fit)
    assert (found.fits, found.largest_batch_size) == (None, None)
