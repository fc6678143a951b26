"""Window g of the endless stream is a function of shards, seed and seq_len alone."""

import hashlib
import json
import random
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from light_jax.data import TokenStream
from light_jax.data import stream as stream_module
from light_llm.errors import UserError

REFERENCE = Path(__file__).parents[2] / "reference/training"


def epoch_tokens(shards, seed):
    """All tokens of an epoch, as the design says it, with none of the code under test."""
    order = list(shards)
    random.Random(seed).shuffle(order)
    return [token for docs in order for doc in docs for token in doc]


def expected_window(shards, g, S, seed=0):
    W = (sum(len(doc) for docs in shards for doc in docs) - 1) // S
    tokens = epoch_tokens(shards, seed + g // W)
    return tokens[g % W * S : g % W * S + S + 1]


def test_it_is_the_stream_of_the_pytorch_trainer():
    expected = json.loads((REFERENCE / "stream.json").read_text())
    stream = TokenStream(
        REFERENCE / expected["shards"], seq_len=expected["seq_len"], seed=expected["seed"]
    )
    W = len(stream)
    assert expected["windows_per_epoch"] == [W, W, W]
    for epoch in range(3):
        windows = stream.windows(np.arange(epoch * W, (epoch + 1) * W))
        assert windows.dtype == np.int32
        assert windows[:12].tolist() == expected["first_windows"][epoch]
        digest = hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()
        assert digest == expected["sha256_int32_le"][epoch]


@pytest.mark.parametrize("seq_len", [1, 7, 64, 500])
def test_every_window_is_a_slice_of_the_shuffled_corpus(corpus, seq_len):
    folder, shards = corpus
    stream = TokenStream(folder, seq_len=seq_len, seed=3)
    for g in [*range(min(60, 3 * len(stream))), len(stream) - 1, 10 * len(stream)]:
        assert stream[g].tolist() == expected_window(shards, g, seq_len, seed=3)


def test_an_epochs_windows_laid_end_to_end_are_the_corpus(corpus):
    folder, shards = corpus
    stream = TokenStream(folder, seq_len=16, seed=1)
    inputs = np.concatenate([window[:-1] for window in stream])
    tokens = epoch_tokens(shards, seed=1)
    assert inputs.tolist() == tokens[: len(stream) * 16]
    assert len(tokens) - inputs.size <= 16
    assert stream.num_tokens == len(tokens)
    assert stream.num_documents == sum(len(docs) for docs in shards)


def test_neighbours_share_one_token(corpus):
    stream = TokenStream(corpus[0], seq_len=8, seed=0)
    windows = stream.windows(np.arange(len(stream)))
    assert (windows[:-1, -1] == windows[1:, 0]).all()


def test_many_windows_at_once_are_the_same_as_one_by_one(corpus):
    stream = TokenStream(corpus[0], seq_len=8, seed=0)
    W = len(stream)
    wanted = np.array([5, 6, 7, 3, W - 1, W, W + 1, 2 * W - 1, 2 * W, 9, 9, 40 * W + 3])
    assert (stream.windows(wanted) == np.stack([stream[g] for g in wanted])).all()
    assert stream.windows(np.array([], np.int64)).shape == (0, 9)


def test_epochs_differ_and_the_seed_repeats_them(corpus):
    def epoch(seed, number):
        stream = TokenStream(corpus[0], seq_len=8, seed=seed)
        return stream.windows(np.arange(number * len(stream), (number + 1) * len(stream))).tolist()

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 1) == epoch(1, 0)  # epoch e is shuffled by seed + e


def test_a_window_far_ahead_costs_no_more_than_the_first(corpus):
    stream = TokenStream(corpus[0], seq_len=8, seed=0)
    began = time.perf_counter()
    window = stream[10**9]
    assert time.perf_counter() - began < 1
    assert window.tolist() == expected_window(corpus[1], 10**9, 8)


def test_a_wrong_index_is_refused(corpus):
    stream = TokenStream(corpus[0], seq_len=8, seed=0)
    with pytest.raises(IndexError, match="window -1 is below 0"):
        stream[-1]
    for wrong in (1.0, "1", slice(3), None):
        with pytest.raises(TypeError):
            stream[wrong]
    assert (stream[np.int64(3)] == stream[3]).all()


def test_a_returned_window_is_the_callers_own(corpus):
    stream = TokenStream(corpus[0], seq_len=8, seed=0)
    stream[0][:] = -1
    assert stream[0].min() >= 0


INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("integer", INTEGERS, ids=str)
@pytest.mark.parametrize("wrap", [pa.list_, pa.large_list, lambda item: pa.list_(item, 4)])
def test_every_integer_type_in_every_kind_of_list(tmp_path, write, integer, wrap):
    docs = [[0, 1, 2, 127], [3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14]]
    write(tmp_path / "a.parquet", docs, wrap(integer))
    stream = TokenStream(tmp_path, seq_len=15, seed=0, vocab_size=128)
    assert stream[0].dtype == np.int32
    assert stream[0].tolist() == [token for doc in docs for token in doc]


@pytest.mark.parametrize(
    "options",
    [
        {"write_statistics": False},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"write_page_checksum": True, "compression": "zstd"},
        {"use_compliant_nested_type": False},
        {"data_page_size": 16, "write_batch_size": 3},
        {"rows": 1},
        {"rows": 1000},
    ],
    ids=str,
)
def test_how_a_shard_was_written_makes_no_difference(corpus, tmp_path, write, options):
    folder, shards = corpus
    other = tmp_path / "other"
    other.mkdir()
    for number, docs in enumerate(shards):
        write(other / f"{number}.parquet", docs, **options)
    streams = [TokenStream(place, seq_len=8, seed=0, vocab_size=100) for place in (folder, other)]
    first, second = (stream.windows(np.arange(3 * len(stream))) for stream in streams)
    assert (first == second).all()


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of row groups within their shards, in the order in which they are decoded."""
    numbers, decode = [], stream_module.decode

    def noted(footer, number, vocab_size):
        numbers.append((footer.path, number))
        time.sleep(0.01)
        return decode(footer, number, vocab_size)

    monkeypatch.setattr(stream_module, "decode", noted)
    return numbers


def test_a_row_group_is_decoded_once_however_many_ask(corpus, decoded):
    stream = TokenStream(corpus[0], seq_len=8, seed=0)
    every = np.arange(len(stream))
    threads = [threading.Thread(target=stream.windows, args=(every,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) > 10
    assert sorted(decoded) == sorted(set(decoded))


def test_what_fits_is_kept_and_always_the_newest(tmp_path, write, decoded, monkeypatch):
    """Row groups of 40, 60, 48 and 500 bytes, of which 100 may be kept; window i is in group i."""
    monkeypatch.setattr(stream_module, "CACHE_BYTES", 100)
    sizes = (10, 15, 12, 125)
    path = write(tmp_path / "a.parquet", [range(size) for size in sizes], rows=1)
    stream = TokenStream(path, seq_len=1, seed=0)
    for group, is_decoded in [
        *((0, True), (1, True), (0, False), (1, False)),  # 100 bytes
        *((0, False), (2, True), (0, False), (1, True)),  # the one asked for longest ago has gone
        *((3, True), (3, False), (1, True)),  # larger than the limit: it alone, while the newest
        *((1, False), (0, True), (3, True)),
    ]:
        decoded.clear()
        assert stream[sum(sizes[:group])].tolist() == [0, 1]
        assert decoded == [(path, group)] * is_decoded


def test_a_failed_reading_is_tried_again(tmp_path, write, monkeypatch):
    stream = TokenStream(write(tmp_path / "a.parquet", [[1, 2, 3]]), seq_len=2, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(stream_module, "decode", lambda *args: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            stream[0]
    assert stream[0].tolist() == [1, 2, 3]


def test_locate_names_the_shard_and_rows_of_a_window(tmp_path, write):
    a = write(tmp_path / "a.parquet", [[0, 1, 2], [], [3, 4], [5], [6, 7, 8, 9]], rows=2)
    b = write(tmp_path / "b.parquet", [[10], [11, 12, 13, 14, 15, 16]], rows=2)
    stream = TokenStream([a, b], seq_len=4, seed=0)
    assert stream[0].tolist() == [0, 1, 2, 3, 4]  # seed 0 leaves the two in this order
    assert stream.locate(0) == [(a, 0, 2)]
    assert stream.locate(1) == [(a, 2, 4)]  # tokens 4 to 8
    assert stream.locate(2) == [(a, 4, 4), (b, 0, 1)]  # tokens 8 to 12
    assert stream.locate(0, count=2) == [(a, 0, 4)]
    assert stream.locate(0, count=4) == [(a, 0, 4), (b, 0, 1)]
    assert {path for path, _, _ in stream.locate(4 * 10**6, count=9)} == {a, b}


def test_too_little_data_for_one_window(tmp_path, write):
    write(tmp_path / "a.parquet", [[1, 2, 3], [4]])
    assert len(TokenStream(tmp_path, seq_len=3, seed=0)) == 1
    with pytest.raises(UserError, match=r"val_data: 1 shard.* with 4 tokens .* 5; .*seq_len=4"):
        TokenStream(tmp_path, seq_len=4, seed=0, field="val_data")
    write(tmp_path / "a.parquet", [])
    with pytest.raises(UserError, match="with 0 tokens"):
        TokenStream(tmp_path, seq_len=4, seed=0)
