"""The shuffled order: every window once an epoch, the same bits everywhere, read pool by pool."""

import hashlib
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from light_jax.data import BatchLoader, TokenStream, order
from light_jax.data import stream as stream_module
from light_jax.data.order import ShuffledOrder, permute

SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 10, 97, 101, 1000, 1009, 2**12, 2**12 + 1, 65_537]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_a_permutation_of_any_size_takes_each_number_once(size, key):
    images = permute(size, key, np.arange(size))
    assert images.dtype == np.int64
    assert sorted(images.tolist()) == list(range(size))


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=50)
def test_a_number_has_its_image_whatever_else_is_asked_for(size, key):
    numbers = np.array([0, size - 1, size // 2, size // 2])
    assert (permute(size, key, numbers) == permute(size, key, np.arange(size))[numbers]).all()


def test_small_permutations_are_all_about_equally_likely():
    counts = {}
    for key in range(4800):
        images = tuple(permute(4, order._key(key), np.arange(4)).tolist())
        counts[images] = counts.get(images, 0) + 1
    assert len(counts) == 24
    assert min(counts.values()) > 140  # of 200 expected
    assert max(counts.values()) < 260


@pytest.mark.parametrize(
    "num_windows, seq_len",
    [
        *itertools.product([1, 2, 3, 10, 4095, 4096, 4097], [1, 1024, 2**22, 2**30]),
        (36_865, 1024),
        (100_003, 1024),
    ],
)
def test_each_window_comes_once_an_epoch_and_each_pool_is_bounded(num_windows, seq_len):
    shuffled = ShuffledOrder(42, num_windows, seq_len)
    positions = np.arange(num_windows)
    windows = shuffled.windows(1, positions)
    assert sorted(windows.tolist()) == positions.tolist()
    pools = [shuffled.pool(number) for number in range(shuffled.num_pools)]
    assert [position for pool in pools for position in pool] == positions.tolist()
    for number, pool in list(enumerate(pools))[:100]:
        assert set(shuffled.pool_of(np.array(pool)).tolist()) == {number}
        run = max(1, order.RUN_TOKENS // seq_len)
        assert 0 < len(pool) < (order.POOL_RUNS + 1) * run
        touched = np.unique(windows[pool.start : pool.stop] // run)
        assert len(touched) <= order.POOL_RUNS + 1


@pytest.mark.parametrize(
    ("seed", "epoch", "num_windows", "expected"),
    [
        (42, 0, 1, [0]),
        (42, 0, 10, [5, 3, 0, 8, 4, 1, 7, 2, 9, 6]),
        (42, 1, 10, [1, 0, 7, 9, 6, 2, 4, 5, 8, 3]),
        (43, 0, 10, [7, 0, 1, 6, 8, 4, 9, 5, 2, 3]),
        (0, 0, 97, [18, 35, 19, 96, 72, 12, 90, 20, 10, 74]),
        (42, 0, 100_003, [54784, 75916, 54978, 30346, 7935]),
        (7, 5, 10**12, [43030853186, 43030851956, 995924608567, 713334031594, 545163226862]),
        (2**31 - 1, 10**9, 10**6 + 3, [777832, 870007, 870127, 306901, 317924]),
    ],
)
def test_the_order_never_changes(seed, epoch, num_windows, expected):
    """A run that is resumed by a later version must go on with its own windows."""
    many = num_windows > 97
    places = [0, 1, 2, num_windows // 2, num_windows - 1] if many else range(len(expected))
    windows = ShuffledOrder(seed, num_windows, 1024).windows(epoch, np.array(places))
    assert windows.tolist() == expected


def test_a_whole_epoch_never_changes():
    windows = ShuffledOrder(42, 100_003, 1024).windows(0, np.arange(100_003)).astype("<i8")
    digest = hashlib.sha256(windows.tobytes()).hexdigest()
    assert digest == "262b6c713421a85503866de47c5ff038c9c64e49e8ca670b45df455565763862"


def test_a_batch_is_drawn_from_all_runs_of_its_pool():
    shuffled = ShuffledOrder(0, 200_000, 1024)
    batch = shuffled.windows(0, np.arange(100_032, 100_096))
    runs = batch // (order.RUN_TOKENS // 1024)
    assert len(np.unique(runs)) >= order.POOL_RUNS - 1
    assert (np.abs(np.diff(batch)) > 1).all()


@pytest.fixture
def small_pools(monkeypatch):
    """Runs of 2000 tokens, pools of 3 of them."""
    monkeypatch.setattr(order, "RUN_TOKENS", 2000)
    monkeypatch.setattr(order, "POOL_RUNS", 3)


def shuffled_stream(folder, write, seq_len=50):
    """100 000 different tokens in row groups of 1000."""
    docs = np.arange(100_000).reshape(1000, 100)
    for number, part in enumerate(np.split(docs, 4)):
        write(folder / f"{number}.parquet", part.tolist(), rows=10)
    return TokenStream(folder, seq_len=seq_len, seed=2, window_order="shuffled")


def test_an_epoch_has_the_windows_of_the_sequential_one(tmp_path, write, small_pools):
    stream = shuffled_stream(tmp_path, write)
    sequential = TokenStream(tmp_path, seq_len=50, seed=2)
    W = len(stream)
    assert len(sequential) == W
    assert stream.order.num_pools > 10
    for epoch in range(2):
        g_n = np.arange(epoch * W, (epoch + 1) * W)
        windows, plain = stream.windows(g_n), sequential.windows(g_n)
        assert not (windows == plain).all(axis=1)[:50].any()
        assert sorted(windows.tolist()) == sorted(plain.tolist())
        assert (windows == sequential.windows(stream.unshuffled(g_n))).all()
    assert (stream.windows(np.arange(W)) != stream.windows(np.arange(W, 2 * W))).any()
    assert (stream[10**9] == sequential[int(stream.unshuffled(np.array([10**9]))[0])]).all()


def test_locate_names_the_rows_of_each_window(tmp_path, write, small_pools):
    stream = shuffled_stream(tmp_path, write)
    places = stream.locate(4000, count=3)
    assert len(places) == 3
    for g, (path, first, last) in zip(range(4000, 4003), places, strict=True):
        shard = int(path[-len("0.parquet")])
        assert stream[g][0] // 100 == shard * 250 + first
        assert first <= last <= first + 1


@pytest.fixture
def decoded(monkeypatch):
    times, decode = [], stream_module.decode

    def noted(footer, number, vocab_size):
        times.append((footer.path, number))
        return decode(footer, number, vocab_size)

    monkeypatch.setattr(stream_module, "decode", noted)
    return times


@pytest.mark.parametrize("num_workers", [0, 3])
def test_an_epoch_decodes_a_row_group_that_is_shorter_than_a_run_at_most_twice(
    tmp_path, write, small_pools, decoded, num_workers
):
    stream = shuffled_stream(tmp_path, write)
    steps = len(stream) // 4
    with BatchLoader(stream, batch_size=4, last_step=steps, num_workers=num_workers) as batches:
        assert sum(1 for _ in batches) == steps
    times = [decoded.count(group) for group in set(decoded)]
    assert len(times) == 100
    assert max(times) <= 2
    assert len(decoded) < 1.6 * 100  # a run is two row groups long


def test_the_next_pool_is_decoded_in_the_steps_of_the_one_before(
    tmp_path, write, small_pools, decoded
):
    stream = shuffled_stream(tmp_path, write)
    pool = stream.order.pool(0)
    assert len(pool) in (80, 120)  # two or three runs, each two row groups long
    with BatchLoader(stream, batch_size=4, last_step=100, num_workers=0) as batches:
        next(batches)
        first = len(decoded)
        assert first <= 3 * 3 + 2
        for _ in range(len(pool) // 4 // 2):
            next(batches)
    assert 3 * 2 <= len(decoded) - first <= 3 * 3 + 2


def test_memory_holds_two_pools_at_most(tmp_path, write, monkeypatch):
    monkeypatch.setattr(order, "RUN_TOKENS", 2**15)
    docs = np.arange(2**21, dtype=np.int32).reshape(-1, 2**10)
    write(tmp_path / "a.parquet", list(docs), rows=8)
    stream = TokenStream(tmp_path, seq_len=256, seed=2, window_order="shuffled")
    largest = max(len(stream.order.pool(n)) for n in range(stream.order.num_pools))
    pool = (4 * 257 + 24) * largest
    options = {"batch_size": 16, "last_step": 2 * len(stream) // 16, "num_workers": 2}
    for rows, share in ((None, 1), (range(4), 1 / 4)):
        with BatchLoader(stream, rows=rows, **options) as batches:
            next(batches)
            tracemalloc.start()  # from here on at most one pool more
            for _ in batches:
                pass
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        row_groups = 6 * 4 * 2**13  # of two threads, on their way from parquet
        assert peak < 2 * share * pool + row_groups
