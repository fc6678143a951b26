"""Batches are the windows of the stream, whoever reads them, however many threads they use."""

import random
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from light_jax.data import BatchLoader, TokenStream, order, validation_batches
from light_jax.data import stream as stream_module
from light_llm.errors import UserError

ORDERS = ["sequential", "shuffled"]


@pytest.fixture(params=ORDERS)
def stream(corpus, request, monkeypatch):
    monkeypatch.setattr(order, "RUN_TOKENS", 64)  # so that there are many pools
    return TokenStream(corpus[0], seq_len=8, seed=0, window_order=request.param)


@pytest.fixture
def val_stream(corpus):
    return TokenStream(corpus[0], seq_len=8, seed=0)


def test_row_r_of_micro_batch_a_of_step_n(stream):
    with BatchLoader(stream, batch_size=6, accum=2, last_step=60, num_workers=2) as batches:
        for n, batch in enumerate(batches):
            assert batch.shape == (2, 6, 9)
            assert batch.dtype == np.int32
            for a in range(2):
                for r in range(6):
                    assert (batch[a, r] == stream[(n * 2 + a) * 6 + r]).all()
    assert n == 59
    assert 2 * len(stream) < 60 * 12  # the batches ran on across epochs


@pytest.mark.parametrize("num_workers", [0, 1, 4])
@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
@pytest.mark.parametrize("share", [lambda n, k: range(n, 8, k), lambda n, k: range(8)[n::k][::-1]])
def test_hosts_and_workers_change_nothing(stream, hosts, num_workers, share):
    whole = stream.windows(np.arange(30 * 2 * 8)).reshape(30, 2, 8, 9)
    joined = np.empty_like(whole)
    for rows in (share(host, hosts) for host in range(hosts)):
        options = {"rows": rows, "num_workers": num_workers}
        with BatchLoader(stream, batch_size=8, accum=2, last_step=30, **options) as batches:
            joined[:, :, list(rows)] = np.stack(list(batches))
    assert (joined == whole).all()


@given(st.permutations(range(5)), st.integers(1, 5), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=25)
def test_any_rows_in_any_order(reference, order, count, num_workers, accum):
    rows = order[:count]
    n_steps = 2 * len(reference) // 5
    with BatchLoader(
        reference,
        batch_size=5,
        accum=accum,
        last_step=n_steps,
        first_step=n_steps - 9,
        rows=rows,
        num_workers=num_workers,
    ) as batches:
        for n, batch in zip(range(n_steps - 9, n_steps), batches, strict=True):
            windows = [[(n * accum + a) * 5 + r for r in rows] for a in range(accum)]
            expected = reference.windows(np.array(windows).reshape(-1))
            assert (batch.reshape(expected.shape) == expected).all()


@pytest.fixture(scope="module", params=ORDERS)
def reference(tmp_path_factory, request):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("reference")
    rng = np.random.default_rng(1)
    for number in range(3):
        docs = [rng.integers(0, 99, size=size).tolist() for size in rng.integers(0, 30, size=20)]
        table = pa.table({"tokens": pa.array(docs, pa.list_(pa.int16()))})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "RUN_TOKENS", 40)
        return TokenStream(folder, seq_len=4, seed=5, window_order=request.param)


@pytest.mark.parametrize("first_step", [1, 7, 25, 29, 30])
def test_a_resumed_loader_reads_the_tail_of_the_uninterrupted_one(stream, first_step):
    options = {"batch_size": 6, "accum": 2, "last_step": 30}
    whole = list(BatchLoader(stream, num_workers=0, **options))
    with BatchLoader(stream, first_step=first_step, num_workers=2, **options) as tail:
        assert np.array_equal(list(tail), whole[first_step:])


@pytest.fixture
def decoded(monkeypatch):
    """How often each row group of each shard is decoded: (path, number) -> times."""
    times, decode = Counter(), stream_module.decode

    def counted(footer, number, vocab_size):
        times[footer.path, number] += 1
        return decode(footer, number, vocab_size)

    monkeypatch.setattr(stream_module, "decode", counted)
    return times


def run_through(stream, **options):
    with BatchLoader(stream, **options) as batches:
        assert sum(1 for _ in batches) == options["last_step"]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_pass_decodes_each_row_group_once(corpus, decoded, monkeypatch, num_workers):
    monkeypatch.setattr(stream_module, "CACHE_BYTES", 0)
    stream = TokenStream(corpus[0], seq_len=8, seed=0)
    run_through(stream, batch_size=4, last_step=len(stream) // 4, num_workers=num_workers)
    assert set(decoded.values()) == {1}
    tokens = {shard.path: shard.tokens for shard in stream.shards}
    assert stream.num_tokens > sum(int(tokens[path][number]) for path, number in decoded) - 32


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_host_decodes_only_row_groups_that_hold_its_windows(
    tmp_path, write, decoded, num_workers
):
    path = write(tmp_path / "a.parquet", [[token] * 8 for token in range(64)], rows=1)
    stream = TokenStream(tmp_path, seq_len=8, seed=0)  # window w: row groups w and w + 1
    options = {"batch_size": 16, "last_step": 3, "rows": [4, 5, 12], "num_workers": num_workers}
    run_through(stream, **options)
    assert set(decoded) == {(path, 16 * n + row) for n in range(3) for row in (4, 5, 6, 12, 13)}


def test_the_look_ahead_is_bounded(tmp_path, write, decoded):
    write(tmp_path / "a.parquet", [[token] * 8 for token in range(500)], rows=1)
    stream = TokenStream(tmp_path, seq_len=8, seed=0)
    with BatchLoader(stream, batch_size=2, last_step=200, num_workers=3) as batches:
        next(batches)
    assert decoded.total() < 20


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_an_error_is_raised_by_the_step_that_needs_the_batch(tmp_path, write, num_workers):
    path = tmp_path / "a.parquet"
    docs = [[token, token] for token in range(60)]
    write(path, docs, rows=10, compression="none", use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(*((n).to_bytes(4, "little") * 2 for n in (44, -1 % 2**32))))
    stream = TokenStream(path, seq_len=4, seed=0, vocab_size=60)
    loader = BatchLoader(stream, batch_size=2, last_step=14, num_workers=num_workers)
    for n in range(9):  # row group 4 begins with token 80; the last token of step 9
        assert next(loader)[0, 0, 0] == 4 * n
    with pytest.raises(UserError, match=r"a\.parquet: row 44 .* id -1 is outside"):
        next(loader)
    assert list(loader) == []


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("seq_len", [7, 1024, 300_000])
def test_documents_of_any_length_are_carried_on_exactly(tmp_path, write, seq_len, rows):
    """Empty ones, single tokens, a million; through row groups, shards, batches and epochs."""
    rng = np.random.default_rng(0)
    sizes = [[0, 1, 0, 1, 1, 1_000_000], [0, 0, 0, 0], [1, 0, 5, 0, 0, 1], [300_001, 0, 1]]
    shards = [[rng.integers(0, 30_000, size=size) for size in of_shard] for of_shard in sizes]
    for number, docs in enumerate(shards):
        write(tmp_path / f"{number}.parquet", docs, rows=rows)
    stream = TokenStream(tmp_path, seq_len=seq_len, seed=9, vocab_size=30_000)
    tokens = []
    for epoch in range(2):
        order = list(range(4))
        random.Random(9 + epoch).shuffle(order)
        tokens.append(np.concatenate([doc for number in order for doc in shards[number]]))
    W = len(stream)
    windows = [t[: W * seq_len + 1] for t in tokens]
    expected = np.concatenate([np.stack([t[:-1], t[1:]]) for t in windows], axis=1)
    batch = 2 * W if W < 100 else 37
    loader = BatchLoader(stream, batch_size=batch, last_step=2 * W // batch, num_workers=2)
    with loader as batches:
        got = np.concatenate([b.reshape(-1, seq_len + 1) for b in batches])
    inputs, targets = (expected[i, : len(got) * seq_len].reshape(-1, seq_len) for i in (0, 1))
    assert len(got) > 2 * W - 37
    assert (got[:, :-1] == inputs).all()
    assert (got[:, 1:] == targets).all()


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("light-")]


def test_threads_end_with_the_loader(stream):
    loader = BatchLoader(stream, batch_size=2, last_step=1000, num_workers=3)
    next(loader)
    assert threads()
    loader.close()
    loader.close()
    assert not threads()
    assert list(loader) == []
    for _ in BatchLoader(stream, batch_size=2, last_step=5, num_workers=3):
        pass
    assert not threads()


def test_threads_end_with_the_evaluation(val_stream):
    for _ in validation_batches(val_stream, 2, 5):
        break
    assert not threads()


def test_an_abandoned_loader_does_not_hold_up_the_exit(corpus):
    program = """
import sys
from light_jax.data import BatchLoader, TokenStream
stream = TokenStream(sys.argv[1], seq_len=8, seed=0)
loader = BatchLoader(stream, batch_size=2, last_step=10**6, num_workers=4)
print(next(loader).shape)
raise KeyboardInterrupt
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(corpus[0])], capture_output=True, text=True, timeout=20
    )
    assert done.stdout == "(1, 2, 9)\n"
    assert done.stderr.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("rows", [[], [0, 0], [6], [-1]])
def test_rows_that_are_no_share_of_a_batch(stream, rows):
    with pytest.raises(ValueError, match=r"must be different numbers of 0\.\.5"):
        BatchLoader(stream, batch_size=6, last_step=1, rows=rows, num_workers=4)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("eval_steps", [1, 3, 5, 1000])
def test_validation_reads_windows_spread_over_epoch_0(val_stream, eval_steps, num_workers):
    W = len(val_stream)
    size = min(eval_steps * 7, W)
    kept = []
    for tokens, mask in validation_batches(val_stream, 7, eval_steps, num_workers=num_workers):
        assert tokens.shape == (7, 9)
        assert mask.dtype == np.float32
        assert not tokens[mask == 0].any()
        kept.extend(tokens[mask == 1])
    expected = [i * W // size for i in range(size)]
    assert expected[-1] >= W - W // size - 1  # up to the end of the set
    assert np.array_equal(kept, val_stream.windows(np.array(expected)))
    assert W % 7  # so that 1000 steps end in a padded batch


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_decodes_a_row_group_at_most_once(val_stream, decoded, num_workers):
    for _ in validation_batches(val_stream, 7, 3, num_workers=num_workers):
        pass
    assert set(decoded.values()) == {1}


@pytest.mark.parametrize("eval_steps", [4, 1000])
def test_validation_on_several_hosts_makes_the_same_batches(val_stream, eval_steps):
    whole = list(validation_batches(val_stream, 7, eval_steps))
    shares = [[6, 2], [0, 1, 3, 4], [5]]
    hosts = [list(validation_batches(val_stream, 7, eval_steps, rows)) for rows in shares]
    for host, rows in zip(hosts, shares, strict=True):
        assert len(host) == len(whole)
        for (tokens, mask), (all_tokens, all_mask) in zip(host, whole, strict=True):
            assert (tokens == all_tokens[rows]).all()
            assert (mask == all_mask[rows]).all()


def test_the_package_is_light():
    program = "import sys, light_jax.data as d; d.BatchLoader; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pyarrow" in done.stdout.split()
    assert not {"jax", "torch", "pandas"} & set(done.stdout.split())
