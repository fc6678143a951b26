"""A mixture keeps its shares in every prefix, can be entered anywhere, and leaves each source's own
order as it is."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from light_jax.data import BatchLoader, MixedStream, TokenStream, describe_change, order
from light_jax.data.mixed import Source, parts_of
from light_jax.data.mixture import LONGEST_PERIOD, Mixture, proportions
from light_llm.errors import UserError

SEQ_LEN, SEED = 8, 3
TOKENS = {"web": 3000, "code": 700, "math": 200}
WEIGHTS = {"web": 0.7, "code": 0.25, "math": 0.05}
ORDERS = ("sequential", "shuffled")

decimals = st.integers(1, 9999).map(lambda number: number / 1000)
weights = st.lists(decimals | st.integers(1, 40).map(float), min_size=1, max_size=9)


# The schedule


@given(weights)
@settings(max_examples=25)
def test_each_prefix_is_within_one_window_of_every_share(weights):
    mixture = Mixture(weights)
    n = np.arange(1, 2 * min(mixture.period, 20_000) + 2)
    sources, _ = mixture.at(n - 1)
    for source, count in enumerate(mixture.counts):
        taken = np.cumsum(sources == source)
        assert (np.abs(taken * mixture.period - n * count) < mixture.period).all()


@given(weights, st.integers(0, 10**15))
@settings(max_examples=25)
def test_a_window_far_away_is_found_as_by_walking(weights, window):
    """Whole periods before it change nothing, and the k-th window of a source follows k - 1."""
    mixture = Mixture(weights)
    near = window % mixture.period
    walked, _ = mixture.at(np.arange(near + 1))
    (source,), (number,) = mixture.at(np.array([window]))
    whole = window // mixture.period * mixture.counts[source]
    assert source == walked[-1]
    assert number == whole + np.count_nonzero(walked == source) - 1
    assert mixture.places(source, np.array([number])) == [window]
    taken = mixture.taken(window)
    assert sum(taken) == window
    assert taken[source] == number


def test_the_weights_are_the_decimals_that_are_written():
    assert proportions([0.7, 0.3]) == proportions([7.0, 3.0]) == [7, 3]
    assert proportions([0.1, 0.2, 0.3]) == [1, 2, 3]  # as floats, 0.1 + 0.2 is not 0.3
    assert Mixture([0.7, 0.2, 0.1]).at(np.arange(10))[0].tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 0, 2]


@pytest.mark.parametrize("fine", [[0.3333333, 0.6666667], [1e-300, 1.0, 1e300]])
def test_weights_without_a_common_unit_are_refused_with_near_ones(fine):
    with pytest.raises(ValueError, match="have no common unit of a millionth") as refused:
        Mixture(fine)
    proposed = str(refused.value).partition("round them, to ")[2].partition(" for")[0]
    near = proportions([float(number) for number in proposed.split(", ")])
    assert sum(near) <= LONGEST_PERIOD
    for number, weight in zip(near, fine, strict=True):
        assert abs(number / sum(near) - weight / sum(fine)) < 1e-5


# The stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three sources of three shards each, every token another."""
    root, draw, token = tmp_path_factory.mktemp("sources"), random.Random(0), 0
    for name, size in TOKENS.items():
        (root / name).mkdir()
        for shard in range(3):
            rows, left = [], size // 3
            while left > 0:
                length = min(left, draw.randrange(40))
                rows.append(list(range(token, token + length)))
                token, left = token + length, left - length
            table = pa.table({"tokens": pa.array(rows, pa.list_(pa.int32()))})
            pq.write_table(table, root / name / f"{shard}.parquet", row_group_size=4)
    return root


@pytest.fixture(autouse=True)
def many_pools(monkeypatch):
    monkeypatch.setattr(order, "RUN_TOKENS", 64)


def mixed(folder, weights=WEIGHTS, **options):
    sources = [Source(name, folder / name, weight) for name, weight in weights.items()]
    return MixedStream(sources, **({"seq_len": SEQ_LEN, "seed": SEED} | options))


@pytest.mark.parametrize("window_order", ORDERS)
def test_a_source_alone_is_the_same_stream(folder, window_order):
    """Across its epochs: the k-th window of a source is window k of its own stream."""
    options = {"seq_len": SEQ_LEN, "seed": SEED, "window_order": window_order}
    stream = mixed(folder, window_order=window_order)
    windows = stream.windows(np.arange(2000))
    sources, _ = stream.mixture.at(np.arange(2000))
    for number, name in enumerate(TOKENS):
        own = TokenStream(folder / name, **options)
        count = np.count_nonzero(sources == number)
        assert (windows[sources == number] == own.windows(np.arange(count))).all()
        assert stream.taken(2000)[number] == (name, count, count * SEQ_LEN, count / len(own))
    assert stream.taken(2000)[2].epochs > 3


@pytest.mark.parametrize("window_order", ORDERS)
@given(data=st.data())
@settings(max_examples=12)
def test_hosts_workers_and_the_first_step_change_nothing(folder, window_order, data):
    def pick(*values):
        return data.draw(st.sampled_from(values))

    weights = dict.fromkeys(TOKENS, 1.0) | {"math": pick(0.01, 0.3, 7.0)}
    stream = mixed(folder, weights, window_order=window_order)
    batch_size, accum, first = pick(2, 6), pick(1, 3), pick(0, 1, 150)
    span = np.arange(first * batch_size * accum, (first + 30) * batch_size * accum)
    whole = stream.windows(span).reshape(30, accum, batch_size, SEQ_LEN + 1)
    rows = data.draw(st.permutations(range(batch_size)))
    cut = data.draw(st.integers(1, batch_size))
    for held in filter(None, (rows[:cut], rows[cut:])):  # two hosts
        options = {"batch_size": batch_size, "accum": accum, "num_workers": pick(0, 1, 3)}
        with BatchLoader(
            stream, first_step=first, last_step=first + 30, rows=held, **options
        ) as batches:
            assert (np.stack(list(batches)) == whole[:, :, held]).all()


def test_a_window_is_traced_to_its_rows(folder):
    stream = mixed(folder)
    (source,), (number,) = stream.mixture.at(np.array([19]))
    assert stream.locate(19) == stream.streams[source].locate(int(number))


def test_an_error_of_a_source_names_its_entry(folder):
    with pytest.raises(UserError, match=r"train_data\[1\]\.path: .* hold no window of seq_len"):
        mixed(folder, {"web": 1.0, "math": 1.0}, seq_len=300)
    with pytest.raises(UserError, match=r"train_data: the weights 1e-09, 1.0 have no common unit"):
        mixed(folder, {"web": 1e-9, "math": 1.0})


def test_a_fingerprint_covers_sources_and_shares_and_not_names(folder):
    known = mixed(folder).fingerprint
    assert (
        describe_change(known, mixed(folder, {k: 20 * w for k, w in WEIGHTS.items()}).fingerprint)
        is None
    )
    renamed = [Source(f"{name}-2", folder / name, weight) for name, weight in WEIGHTS.items()]
    again = MixedStream(renamed, seq_len=SEQ_LEN, seed=SEED).fingerprint
    assert describe_change(known, again) is None
    other = mixed(folder, WEIGHTS | {"math": 0.3}).fingerprint
    assert describe_change(known, other) == (
        "share of web: 7/10 -> 14/25; share of code: 1/4 -> 1/5; share of math: 1/20 -> 6/25"
    )
    fewer = mixed(folder, {"web": 1.0, "code": 1.0}).fingerprint
    assert describe_change(known, fewer) == (
        "sources: 3 (web 7/10, code 1/4, math 1/20) -> 2 (web 1/2, code 1/2)"
    )
    alone = TokenStream(folder / "web", seq_len=SEQ_LEN, seed=SEED).fingerprint
    assert "source" not in alone[0]
    assert describe_change(alone, known).startswith("sources: none, shards alone -> 3 (web 7/10")
    swapped = mixed(folder, {"code": 0.7, "web": 0.25, "math": 0.05}).fingerprint
    assert describe_change(known, swapped).startswith("shards of code: changed: 0.parquet (rows")


def test_an_evaluation_is_shared_out_by_the_weights(folder):
    parts = parts_of(mixed(folder, {"web": 0.7, "code": 0.25, "math": 0.05}), 10)
    assert [(part.name, part.steps) for part in parts] == [("web", 7), ("code", 3), ("math", 1)]
    assert [part.share for part in parts] == [0.7, 0.25, 0.05]
    assert [part.steps for part in parts_of(mixed(folder), 1)] == [1, 1, 1]
    plain = TokenStream(folder / "web", seq_len=SEQ_LEN, seed=SEED)
    assert parts_of(plain, 10) == [(None, 1.0, plain, 10)]
