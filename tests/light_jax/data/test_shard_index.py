"""Counts are proven, ids are checked, and an error names the shard and the row."""

import json
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from light_jax.data import TokenStream, describe_change
from light_jax.data import index as index_module
from light_jax.data import stream as stream_module
from light_jax.data.index import index_shards
from light_llm.errors import UserError

DOCS = [[1, 2, 3], [], [4], [5, 6], [], [7]]


@pytest.fixture
def decoded(monkeypatch):
    """The row groups that the index had to decode."""
    groups = []

    def decode(footer, group, vocab_size):
        groups.append(group)
        return real(footer, group, vocab_size)

    real = index_module.decode
    monkeypatch.setattr(index_module, "decode", decode)
    return groups


def lengths(docs):
    return [len(doc) for doc in docs]


@pytest.mark.parametrize(
    "docs, options, expected",
    [
        ([[1, 2], [3], [4]], {}, []),
        (DOCS, {}, [0, 1]),  # an empty list looks like a null one
        (DOCS, {"lengths": lengths(DOCS)}, []),
        (DOCS, {"lengths": lengths(DOCS), "write_statistics": False}, [0, 1]),
        ([[], [], [], [], [9, 9]], {"lengths": [0, 0, 0, 0, 2]}, []),
        ([[1]] * 6, {"write_statistics": ["length"], "lengths": [1] * 6}, [0, 1]),
    ],
)
def test_a_row_group_is_decoded_only_where_the_footer_leaves_a_doubt(
    tmp_path, write, decoded, docs, options, expected
):
    path = write(tmp_path / "a.parquet", docs, **options)
    (shard,) = index_shards(path, vocab_size=10)
    assert (
        shard.tokens.tolist()
        == [sum(lengths(docs[:3])), sum(lengths(docs[3:]))][: len(shard.tokens)]
    )
    assert shard.rows.sum() == len(docs)
    assert decoded == expected


@pytest.mark.parametrize("length, expected", [(None, [0]), ([1, 1, 1], [])])
def test_an_unknown_writers_footer_needs_a_second_witness(
    tmp_path, write, decoded, length, expected
):
    path = write(tmp_path / "a.parquet", [[1], [2], [3]], lengths=length)
    data = (tmp_path / "a.parquet").read_bytes()
    assert data.count(b"parquet-cpp-arrow") == 1
    (tmp_path / "a.parquet").write_bytes(data.replace(b"parquet-cpp-arrow", b"parquet-mr-spark!"))
    assert index_shards(path)[0].tokens.tolist() == [3]
    assert decoded == expected


def test_a_length_that_lies(tmp_path, write):
    path = write(tmp_path / "a.parquet", DOCS, lengths=[3, 0, 1, 2, 1, 1])
    with pytest.raises(UserError, match=r"a\.parquet: row 4 .* length=1 and 0 tokens"):
        index_shards(path)
    path = write(tmp_path / "b.parquet", [[1], [2, 3]], lengths=[2, 2])
    with pytest.raises(UserError, match=r"b\.parquet: row 0 .* length=2 and 1 tokens"):
        index_shards(path)
    docs = [[1], [2, 3], [4, 5, 6], [1, 2, 3], [4], [5, 6]]  # the second row group's least and
    path = write(tmp_path / "c.parquet", docs, lengths=[1, 2, 3, 3, 1, 3])  # greatest are right
    with pytest.raises(UserError, match=r"c\.parquet: row 5 .* length=3 and 2 tokens"):
        index_shards(path)


def test_a_length_that_is_not_a_count_is_ignored(tmp_path):
    for column in (pa.array([1.0, 7.5]), pa.array([None, 1]), pa.array(["a", "b"])):
        table = pa.table({"length": column, "tokens": [[1, 2], []]})
        pq.write_table(table, tmp_path / "a.parquet")
        assert index_shards(tmp_path)[0].tokens.tolist() == [2]


def test_columns_beside_the_tokens_change_nothing(tmp_path):
    """Also those whose names begin as the tokens' path does, and nested ones."""
    docs = [[1, 2], [3], [4, 5, 6]]
    tokens = {"tokens": pa.array(docs, pa.list_(pa.int32()))}
    counts = pa.array([7, 8, 9], pa.int32())
    others = {
        "tokens.count": counts,
        "tokens.list.element": counts,
        "a": pa.array([{"b": [1], "tokens": {"x": 1}}] * 3),
        "m": pa.array([[("k", 1)]] * 3, pa.map_(pa.string(), pa.int8())),
        "d": pa.array(["x", "y", "x"]).dictionary_encode(),
        "length.x": counts,
    }
    length = {"length": pa.array([2, 1, 3])}
    path = tmp_path / "a.parquet"
    for columns in (others | tokens, tokens | others, others | length | tokens):
        pq.write_table(pa.table(columns), path)
        assert index_shards(path)[0].tokens.tolist() == [6]
        assert TokenStream(path, seq_len=5, seed=0, vocab_size=10)[0].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(pa.uint16()),
        pa.list_view(pa.int32()),
        pa.large_list_view(pa.uint16()),
        pa.list_(pa.int64(), 2),
    ],
    ids=str,
)
def test_every_kind_of_list_is_read(tmp_path, write, kind):
    docs = [[1, 2], [3, 4], [5, 6], [7, 8]]
    path = write(tmp_path / "a.parquet", docs, kind)
    assert index_shards(path)[0].tokens.tolist() == [6, 2]
    stream = TokenStream(path, seq_len=7, seed=0, vocab_size=10)
    assert stream[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    write(tmp_path / "a.parquet", [[1, 2], [3, 4], [5, 60]], kind)
    with pytest.raises(UserError, match=r"row 2 .*: token id 60"):
        index_shards(path, 10)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    "docs, message",
    [
        ([[1], [2], [3], [4, 5], None, [6]], r"row 4 \(the first is 0\): tokens is null; write an"),
        ([[1], [2], [3], [4, 5], [6, None]], r"row 4 .*: tokens holds a null"),
        ([[1], [2], [3], [4, 5], [], [6, -7]], r"row 5 .*: token id -7 is outside 0\.\.99 \(mod"),
        ([[1], [2], [3], [4, 100], [6]], r"row 3 .*: token id 100 .* \(model\.vocab_size=100\)"),
    ],
)
def test_a_bad_row_is_named(tmp_path, write, docs, message, statistics):
    write(tmp_path / "good.parquet", [[1, 2, 3]])
    write(tmp_path / "bad.parquet", docs, write_statistics=statistics)
    with pytest.raises(UserError, match=r"bad\.parquet: " + message):
        TokenStream(tmp_path, seq_len=2, seed=0, vocab_size=100)


@pytest.mark.parametrize("kind, bad", [(pa.int8(), -1), (pa.int64(), -1), (pa.uint64(), 2**63)])
def test_a_bad_id_of_any_type(tmp_path, write, kind, bad):
    path = write(tmp_path / "a.parquet", [[1], [2, bad], [3]], pa.list_(kind))
    for vocab_size in (100, 10**6, None):
        with pytest.raises(UserError, match=rf"a\.parquet: row 1 .* id {bad} "):
            index_shards(path, vocab_size)


def test_without_a_vocab_size_an_id_must_fit_int32(tmp_path, write):
    path = write(tmp_path / "a.parquet", [[2**31 - 1], [2**31]], pa.list_(pa.int64()), rows=1)
    with pytest.raises(UserError, match=r"row 1 .* 2147483648 does not fit"):
        index_shards(path)


def test_a_bad_id_behind_a_good_looking_footer_is_found_as_it_is_read(tmp_path, write):
    """The same file with one value of a page patched; its statistics still promise the best."""
    path = tmp_path / "a.parquet"
    docs = [[1, 2], [3, 77777], [4, 80000]]
    write(path, docs, compression="none", use_dictionary=False)
    data = path.read_bytes()
    old, new = ((number).to_bytes(4, "little") for number in (77777, 99999999))
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    stream = TokenStream(path, seq_len=2, seed=0, vocab_size=80001)
    with pytest.raises(UserError, match=r"a\.parquet: row 1 .* 99999999 is outside 0\.\.80000"):
        stream[0]


@pytest.mark.parametrize(
    "table, message",
    [
        (pa.table({"input_ids": [[1]], "text": ["a"]}), "one column 'tokens' and has input_ids, t"),
        (pa.table({"tokens": [[1.0]]}), r"'tokens' is list<.*double>; it must be a list of int"),
        (pa.table({"tokens": [["a"]]}), r"'tokens' is list<.*string>"),
        (pa.table({"tokens": ["1 2 3"]}), "'tokens' is string"),
        (pa.table({"tokens": [1, 2]}), "'tokens' is int64"),
        (pa.table({"tokens": [[[1]]]}), "'tokens' is list<.*list<"),
    ],
)
def test_a_shard_without_token_lists(tmp_path, table, message):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: .*" + message):
        index_shards(tmp_path)


def test_damaged_files(tmp_path, write):
    path = tmp_path / "a.parquet"
    write(path, [[1, 2, 3]] * 50)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    faults = {
        b"": r"is empty \(0 bytes\)",
        whole[:-1]: "is truncated",
        whole[: len(whole) // 2]: "is truncated",
        whole[:4]: "is truncated",
        b"{'tokens': [1]}": "not a parquet file",
        whole[: -8 - footer] + b"\xff" * footer + whole[-8:]: "footer is corrupt",
        whole[:-8] + b"\xff\xff\xff\x7fPAR1": "footer is corrupt",
    }
    for data, message in faults.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"a\.parquet: .*{message}"):
            index_shards(path)


@pytest.mark.parametrize("options", [{"write_page_checksum": True}, {"compression": "zstd"}])
def test_a_damaged_page(tmp_path, write, options):
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    docs = rng.integers(0, 1000, size=(50, 20)).tolist()
    write(path, docs, rows=50, **options)
    stream = TokenStream(path, seq_len=4, seed=0)
    data = bytearray(path.read_bytes())
    data[150:170] = bytes(byte ^ 0xFF for byte in data[150:170])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: row (group 0 is corrupt|\d+ .* id)"):
        stream[0]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_flipped_bit_is_never_read(tmp_path, write, version):
    """With page checksums: the shard is refused, or the bit has no meaning (in a page's header)."""
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    docs = rng.integers(0, 1000, size=(60, 20))
    options = {"write_page_checksum": True, "data_page_version": version, "compression": "zstd"}
    write(path, docs.tolist(), rows=30, **options)
    whole = path.read_bytes()
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    messages = []
    for bit in rng.integers(8 * 4, 8 * pages, size=60).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        stream = TokenStream(path, seq_len=1199, seed=0)
        try:
            assert (stream[0] == docs.reshape(-1)).all(), bit
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 50
    rule = re.compile(r".*a\.parquet: row group \d is corrupt .*; write the shard again")
    assert [error for error in messages if not rule.fullmatch(error)] == []


def test_a_shard_that_changes_while_it_is_in_use(tmp_path, write, monkeypatch):
    monkeypatch.setattr(stream_module, "CACHE_BYTES", 0)  # the last row group is kept, no other
    path = tmp_path / "a.parquet"
    write(path, [[1, 2, 3]] * 9)
    stream = TokenStream(path, seq_len=2, seed=0)
    whole = path.read_bytes()
    os.utime(path, (1, 1))  # touched, not changed
    assert stream[0].tolist() == [1, 2, 3]
    assert stream[len(stream) - 1].tolist() == [1, 2, 3]
    for change in (lambda: write(path, [[1, 2, 4]] * 9), lambda: path.write_bytes(whole[:-20])):
        change()
        with pytest.raises(UserError, match=r"a\.parquet: the shard is no longer the one"):
            stream[0]
    path.unlink()
    with pytest.raises(UserError, match=r"a\.parquet: .* \(.*No such file"):
        stream[0]
    path.write_bytes(whole)
    assert stream[0].tolist() == [1, 2, 3]


def test_the_first_bad_shard_is_reported_by_any_thread(tmp_path, write):
    for number in range(12):
        write(tmp_path / f"{number:02d}.parquet", [[1, 2, 3]] * (300 - 20 * number))
    for number in (5, 9):
        (tmp_path / f"{number:02d}.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"05\.parquet"):
        index_shards(tmp_path)


def fingerprint(folder):
    return json.loads(json.dumps(TokenStream(folder, seq_len=2, seed=0).fingerprint))


def test_the_fingerprint_is_of_the_data_not_of_its_place(corpus, tmp_path):
    folder, _ = corpus
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(folder) == fingerprint(tmp_path / "elsewhere")
    assert describe_change(fingerprint(folder), fingerprint(tmp_path / "elsewhere")) is None


def test_a_change_is_described(corpus, write):
    folder, shards = corpus
    before = fingerprint(folder)
    tokens = sum(lengths(shards[1]))
    write(folder / "1.parquet", [*shards[1], [1, 2, 3]])
    assert describe_change(before, fingerprint(folder)) == (
        f"changed: 1.parquet (rows 17 -> 18, tokens {tokens} -> {tokens + 3})"
    )
    write(folder / "1.parquet", [doc[::-1] for doc in shards[1]], compression="zstd")
    assert describe_change(before, fingerprint(folder)) == "changed: 1.parquet (other contents)"
    (folder / "1.parquet").rename(folder / "9.parquet")
    change = describe_change(before, fingerprint(folder))
    assert change == "added: 9.parquet; removed: 1.parquet"
    assert describe_change(before, before[::-1]) == "the same shards in another order"
    assert describe_change(before, [*before, before[0]]) == "added: 0.parquet (2)"
