"""Outputs: shards that hold the documents, split by their text only, equal for equal input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from light_llm.preprocess import PreprocessConfig, Summary, preprocess, unigram_entropy
from light_llm.preprocess.encode import encode
from light_llm.preprocess.schema import schema
from light_llm.preprocess.split import split_of_all, text_hashes
from light_llm.tokenizer import SubwordTokenizer, load_tokenizer, train_char


@pytest.fixture
def many(tmp_path: Path, write_parquet: Callable) -> Path:
    """2,000 different documents and a few that come twice."""
    path = tmp_path / "many.parquet"
    write_parquet(path, [f"document {i} " + "word " * (i % 7) for i in [*range(2000), 0, 1, 2]])
    return path


def shard(path: Path, output: Path, **options: object) -> Summary:
    options.setdefault("tokenizer", "char")
    config = {"input": (str(path),), "output": output, **options}
    return preprocess(PreprocessConfig.model_validate(config))


def test_columns_and_types_are_the_contract(corpus: Path, tmp_path: Path):
    shard(corpus, tmp_path / "out", val_fraction=0.4)
    for split in ("train", "val"):
        file = pq.ParquetFile(tmp_path / "out" / split / "shard_00000.parquet")
        assert file.schema_arrow.equals(schema())
        assert str(file.schema_arrow.field("tokens").type.value_type) == "int32"
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            for column in map(group.column, range(4)):
                assert column.compression == "ZSTD"
                assert column.is_stats_set
            lengths = file.read_row_group(index, ["length"])["length"].to_pylist()
            assert group.column(3).num_values == sum(lengths)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_tokens_are_the_text_and_the_end_mark(
    corpus: Path, tmp_path: Path, kind: str, rows: Callable
):
    shard(corpus, tmp_path / "out", tokenizer=kind, val_fraction=0.3)
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer")
    documents = rows(tmp_path / "out")
    assert len(documents) == 5
    for row in documents:
        assert row["text"].encode() == Path(row["source"]).read_bytes()
        assert row["length"] == len(row["tokens"])
        assert row["tokens"].count(tokenizer.eos_id) == 1
        assert row["tokens"][-1] == tokenizer.eos_id
        assert tokenizer.decode(row["tokens"]) == row["text"]


class Marks:
    """Each letter is its own id; a text may hold the marks, as Hugging Face's parse them."""

    def __init__(self, bos_id: int | None, eos_id: int | None):
        self.bos_id, self.eos_id = bos_id, eos_id

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        return [[int(letter) for letter in text] for text in texts]


@pytest.mark.parametrize(
    ("bos", "eos", "text", "tokens"),
    [
        (None, None, "34", [3, 4]),
        (None, 2, "34", [3, 4, 2]),
        (1, 2, "34", [1, 3, 4, 2]),
        (1, None, "34", [1, 3, 4]),
        (2, 2, "34", [3, 4, 2]),  # one token for both, as GPT-2's, is the end
        (1, 2, "1342", [1, 3, 4, 2]),  # there already
        (None, 2, "322", [3, 2, 2]),
    ],
)
def test_marks_stand_once_at_each_end(bos: int, eos: int, text: str, tokens: list[int]):
    ids = encode([text], Marks(bos, eos))  # type: ignore[arg-type]
    assert ids.values.tolist() == tokens


def test_the_tokenizers_own_template_adds_its_marks_once(tmp_path: Path):
    """With add_special_tokens a template of <s> and </s> is used, and nothing is added to it."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(
        models.WordLevel({"<u>": 0, "<s>": 1, "</s>": 2, "[X]": 3, "cat": 4}, "<u>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(token) for token in ("<u>", "<s>", "</s>", "[X]")])
    special = [("<s>", 1), ("[X]", 3), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(
        "<s> [X] $A </s>", special_tokens=special
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "cat.txt").write_text("cat cat")
    for added, tokens in ((False, [1, 4, 4, 2]), (True, [1, 3, 4, 4, 2])):
        shard(
            tmp_path / "cat.txt",
            tmp_path / "out",
            tokenizer="hf",
            tokenizer_path=str(tmp_path / "tokenizer.json"),
            add_special_tokens=added,
            overwrite=True,
        )
        (table,) = map(pq.read_table, (tmp_path / "out/train").iterdir())
        assert table["tokens"].to_pylist() == [tokens]


def test_two_runs_give_the_same_bytes(many: Path, tmp_path: Path, files: Callable):
    for name in ("a", "b"):
        shard(many, tmp_path / name, tokenizer="bpe", vocab_size=300, shard_size=10_000)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) > 4


def test_a_texts_side_does_not_depend_on_the_order(many: Path, tmp_path: Path, rows: Callable):
    texts = pq.read_table(many)["text"].to_pylist()
    pq.write_table(pa.table({"text": texts[::-1][:1500]}), tmp_path / "other.parquet")
    shard(many, tmp_path / "a", val_fraction=0.1)
    shard(tmp_path / "other.parquet", tmp_path / "b", val_fraction=0.1)
    sides = {
        (name, split): {row["text"] for row in rows(tmp_path / name / split)}
        for name in ("a", "b")
        for split in ("train", "val")
    }
    for name in ("a", "b"):
        assert not sides[name, "train"] & sides[name, "val"]
    assert sides["b", "val"] <= sides["a", "val"]
    assert sides["b", "train"] <= sides["a", "train"]
    assert sides["a", "train"] | sides["a", "val"] == set(texts)
    assert 0.07 < len(sides["a", "val"]) / 2000 < 0.13


def test_without_val_there_is_no_val(many: Path, tmp_path: Path, rows: Callable):
    summary = shard(many, tmp_path / "out", val_fraction=0)
    assert summary.val.documents == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["manifest.json", "tokenizer", "train"]
    assert len(rows(tmp_path / "out/train")) == 2003


@given(st.sets(st.text(), min_size=2), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_both_sides_get_something(texts: set[str], fraction: float):
    split = split_of_all(fraction, list(texts))
    held_out = split.held_out(text_hashes(list(texts)))
    wanted = fraction >= 2**-64
    assert any(held_out) == wanted
    assert not all(held_out)


def test_two_documents_make_one_of_each(tmp_path: Path, write_parquet: Callable):
    write_parquet(tmp_path / "two.parquet", ["first", "second"])
    for fraction in (0.0001, 0.9999):
        summary = shard(tmp_path / "two.parquet", tmp_path / f"{fraction}", val_fraction=fraction)
        assert (summary.train.documents, summary.val.documents) == (1, 1)


def test_one_text_is_all_train_and_a_notice_says_so(
    tmp_path: Path, write_parquet: Callable, capsys: pytest.CaptureFixture
):
    write_parquet(tmp_path / "one.parquet", ["same", "same"])
    summary = shard(tmp_path / "one.parquet", tmp_path / "out")
    assert (summary.train.documents, summary.val.documents) == (2, 0)
    assert "nothing is held out" in capsys.readouterr().err


def test_unicode_empty_and_huge_documents(tmp_path: Path, write_parquet: Callable, rows: Callable):
    texts = ["👩‍👩‍👧" * 10, "", "\u2028\u0085x", "word " * 400_000, "e\u0301", " "]
    write_parquet(tmp_path / "a.parquet", texts)
    shard(tmp_path / "a.parquet", tmp_path / "out", tokenizer="bpe", vocab_size=300, val_fraction=0)
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer")
    kept = [text for text in texts if text.strip()]
    assert [tokenizer.decode(row["tokens"]) for row in rows(tmp_path / "out")] == kept


def test_a_loaded_tokenizer_is_used_and_kept(
    many: Path, saved_bpe: Path, bpe: SubwordTokenizer, tmp_path: Path, rows: Callable
):
    shard(many, tmp_path / "out", tokenizer="bpe", tokenizer_path=str(saved_bpe))
    for row in rows(tmp_path / "out")[:50]:
        assert row["tokens"] == [*bpe.encode(row["text"]), bpe.eos_id]
    for file in saved_bpe.iterdir():
        assert (tmp_path / "out/tokenizer" / file.name).read_bytes() == file.read_bytes()


def test_characters_that_a_tokenizer_lacks_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    train_char(["abc"]).save(tmp_path / "abc")
    (tmp_path / "a.txt").write_text("abcde")
    shard(tmp_path / "a.txt", tmp_path / "out", tokenizer_path=str(tmp_path / "abc"))
    assert "2 characters are unknown to the tokenizer and became id 0" in capsys.readouterr().err


def test_the_number_of_workers_changes_nothing(
    many: Path, saved_bpe: Path, tmp_path: Path, run: Callable, files: Callable
):
    for workers in (1, 3):
        flags = ("--input", many, "--output", f"out{workers}", "--tokenizer-path", saved_bpe)
        assert run(*flags, "--workers", workers).returncode == 0
    assert files(tmp_path / "out1") == files(tmp_path / "out3")


def test_the_summary_counts_what_is_there(many: Path, tmp_path: Path, rows: Callable):
    summary = shard(many, tmp_path / "out", val_fraction=0.2, shard_size=5_000)
    for part, split in ((summary.train, "train"), (summary.val, "val")):
        documents = rows(tmp_path / "out" / split)
        assert part.documents == len(documents)
        assert part.tokens == sum(row["length"] for row in documents)
        assert part.characters == sum(len(row["text"]) for row in documents)
        assert part.files == len(list((tmp_path / "out" / split).iterdir()))
    assert summary.unigram_entropy == unigram_entropy(tmp_path / "out/val")
    assert summary.vocab_size == train_char([row["text"] for row in rows(tmp_path)]).vocab_size


def test_shuffling_keeps_the_documents_and_mixes_their_order(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(60):
        (tmp_path / f"in/{number:02d}.txt").write_text(f"document {number} " * 5)
    orders = {}
    for name, seed in [("sorted", None), ("one", 1), ("again", 1), ("two", 2)]:
        shard(tmp_path / "in", tmp_path / name, tokenizer="char", val_fraction=0, shuffle_seed=seed)
        files = sorted((tmp_path / name / "train").glob("*.parquet"))
        orders[name] = [s for file in files for s in pq.read_table(file)["source"].to_pylist()]
    assert orders["one"] == orders["again"]
    assert len({tuple(order) for order in orders.values()}) == 3
    assert {tuple(sorted(order)) for order in orders.values()} == {tuple(orders["sorted"])}
