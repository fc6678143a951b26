"""Tokenizers as others publish them: the ids are those of their tokenizer.json, and of its copy."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from light_llm.errors import UserError
from light_llm.tokenizer import SubwordTokenizer, load_tokenizer

TEXTS = [
    f"the year {year} has {year % 12 + 1} months and {year * 7919} seconds,\n\nit's {{ x+=1; }}"
    for year in range(1900, 1960)
]
END = "<|endoftext|>"
# Digits by threes, then bytes; published ones with such rules name classes that have other rules.
CUT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options: dict[str, Any] = {"initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END], **options)
    backend.train_from_iterator(TEXTS, trainer)
    return backend


RAW = trained()


def published(folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """RAW in a folder; `config` is tokenizer_config.json, and `files` are others by their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    RAW.save(str(folder / "tokenizer.json"))
    for name, content in ({"tokenizer_config": config} | files).items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def subword(path: Path | str) -> SubwordTokenizer:
    tokenizer = load_tokenizer(path, fetch=False)
    assert isinstance(tokenizer, SubwordTokenizer)
    return tokenizer


def in_the_cache(cache: Path, name: str, config: dict[str, Any]) -> Path:
    """The snapshot of a published repository, as the hub's cache keeps it."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0" * 40)
    folder = published(model / "snapshots" / ("0" * 40), config)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2TokenizerFast"])
def test_by_name_the_ids_are_those_of_the_repositorys_file(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = {"tokenizer_class": kind, "eos_token": END, "bos_token": END, "unk_token": END}
    folder = in_the_cache(tmp_path, "acme/smol", config)
    by_name, by_folder = subword("acme/smol"), subword(folder)
    assert by_name.encode_batch(TEXTS) == [RAW.encode(text).ids for text in TEXTS]
    assert by_name.eos_id == by_folder.eos_id == 0
    for tokenizer, copy in ((by_name, "a"), (by_folder, "b")):
        tokenizer.save(tmp_path / copy)
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


# The copy


def agrees_with_its_copy(tokenizer: SubwordTokenizer, folder: Path, texts: list[str]) -> None:
    """AutoTokenizer reads what is saved to the same ids, and loading it here changes no byte."""
    from transformers import AutoTokenizer

    tokenizer.save(folder)
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text)
        for skip in (True, False):
            assert theirs.decode(ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip)
    assert 1 + max(theirs.get_vocab().values()) == tokenizer.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    again = folder.with_name("again")
    subword(folder).save(again)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


MARKED = [*TEXTS[:5], "<|im_start|>user hello<|im_end|>", "a<pad>b <mask> </s>", f"x{END} y", ""]
CLASSES = ("GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizerFast", "RobertaTokenizer", None)


@pytest.mark.parametrize("kind", CLASSES)
def test_whatever_class_is_named_the_copy_gives_the_ids_of_the_file(tmp_path, kind):
    config = {
        "tokenizer_class": kind,
        "eos_token": END,
        "pad_token": "<pad>",
        "add_bos_token": True,
    }
    config |= {"mask_token": {"content": "<mask>", "lstrip": True, "__type": "AddedToken"}}
    config |= {"add_bos_token": True, "add_prefix_space": True}
    config |= {"extra_special_tokens": ["<new>", END], "unk_token": None}
    tokenizer = subword(published(tmp_path / "tok", config))
    agrees_with_its_copy(tokenizer, tmp_path / "copy", MARKED)
    assert [tokenizer.encode(text) for text in TEXTS] == [RAW.encode(text).ids for text in TEXTS]


def test_a_space_that_the_file_puts_first_stays_in_the_copy(tmp_path):
    folder = published(tmp_path / "tok", {"eos_token": END})
    data = json.loads((folder / "tokenizer.json").read_text())
    data["pre_tokenizer"] = data["pre_tokenizer"]["pretokenizers"][1] | {"add_prefix_space": True}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = subword(folder)
    assert tokenizer.encode("year") == tokenizer.encode(" year")
    agrees_with_its_copy(tokenizer, tmp_path / "copy", MARKED)
    config = json.loads((tmp_path / "copy/tokenizer_config.json").read_text())
    assert config["add_prefix_space"]  # versions 4 of transformers take no key as false


# Special tokens


def test_of_special_tokens_the_map_is_believed_before_the_config(tmp_path):
    """Unless the config lists added_tokens_decoder; and both before a guess."""
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {"0": {"content": END, "special": True} | flags}
    config, named = {"eos_token": "the"}, {"eos_token": {"content": END} | flags}
    for name, files, end in (
        ("map", {"config": config, "special_tokens_map": named}, END),
        ("map alone", {"special_tokens_map": {"eos_token": "year"}}, "year"),
        (
            "decoder",
            {
                "config": config | {"added_tokens_decoder": decoder},
                "special_tokens_map": named,
            },
            "the",
        ),
        ("silent", {"config": {"model_max_length": 9}}, END),
        ("none", {"config": {"eos_token": None}}, None),
    ):
        tokenizer = subword(published(tmp_path / name, **files))
        assert tokenizer.eos_id == (None if end is None else RAW.token_to_id(end)), name
        agrees_with_its_copy(tokenizer, tmp_path / name / "copy", MARKED)


def test_a_guessed_end_is_told_and_one_that_a_file_names_is_not(tmp_path, capsys):
    subword(published(tmp_path / "silent", {"model_max_length": 9}))
    assert f"which token ends a document; '{END}' is taken" in capsys.readouterr().err
    subword(published(tmp_path / "named", special_tokens_map={"eos_token": END}))
    assert capsys.readouterr().err == ""


# Added tokens

IM = {"<|im_start|>": 400, "<|im_end|>": 401}


def im_decoder(**flags: bool) -> dict[str, Any]:
    return {str(id): {"content": text, "special": True} | flags for text, id in IM.items()}


ENDS = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
BESIDE: dict[str, dict[str, Any]] = {
    "added_tokens.json": {"config": ENDS, "added_tokens": IM},
    "decoder": {"config": ENDS | {"added_tokens_decoder": im_decoder()}},
    "decoder with flags": {"config": ENDS | {"added_tokens_decoder": im_decoder(rstrip=True)}},
}


@pytest.mark.parametrize("files", BESIDE.values(), ids=BESIDE)
def test_tokens_beside_the_file_have_the_ids_that_their_file_gives(tmp_path, files):
    from transformers import AutoTokenizer

    folder = published(tmp_path / "tok", **files)
    tokenizer = subword(folder)
    assert (tokenizer.eos_id, tokenizer.vocab_size, tokenizer.absent) == (401, 402, [])
    text = "<|im_start|>user  hello<|im_end|>"
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (400, 401)
    assert ids == AutoTokenizer.from_pretrained(folder, trust_remote_code=False).encode(text)
    agrees_with_its_copy(tokenizer, tmp_path / "copy", [text, *MARKED])


DISAGREEING: dict[str, tuple[dict[str, Any], str]] = {
    "another id": ({"added_tokens": {"the": 5}}, "gives 'the' the id 5, and tokenizer.json"),
    "another token": ({"added_tokens": {"<x>": 0}}, "in tokenizer.json that is '<|endoftext|>'"),
    "a gap": ({"added_tokens": {"<x>": 450}}, "the next id after those of tokenizer.json is 400"),
    "decoder": (
        {"config": {"added_tokens_decoder": {"7": {"content": END}}}},
        "tokenizer_config.json: gives '<|endoftext|>' the id 7, and tokenizer.json gives it 0",
    ),
    "unread": (
        {"config": {"added_tokens_decoder": im_decoder()}, "added_tokens": {"<|im_end|>": 400}},
        "added_tokens.json: gives '<|im_end|>' the id 400",
    ),
    "two": ({"added_tokens": {"<x>": 400, "<y>": 400}}, "gives '<y>' the id 400"),
    "no id": ({"added_tokens": {"<x>": "400"}}, "the id of '<x>' is '400'; it must be a number"),
    "below 0": ({"added_tokens": {"<x>": -1}}, "the id of '<x>' is -1; it must be a number from 0"),
    "beyond": ({"added_tokens": {"<x>": 2**32}}, "the id of '<x>' is 4294967296; it must be"),
    "no map": ({"added_tokens": ["<x>"]}, "added_tokens.json: is not a JSON object"),
    "no content": ({"config": {"added_tokens_decoder": {"0": "x"}}}, "with its `content`"),
    "no decoder": ({"config": {"added_tokens_decoder": 3}}, "it must map ids to tokens"),
    "negative": ({"config": {"added_tokens_decoder": {"-1": {"content": "x"}}}}, "has '-1'"),
    "large": (
        {"config": {"added_tokens_decoder": {str(2**32): {"content": "x"}}}},
        "has '4294967296'",
    ),
    "extra": ({"config": {"extra_special_tokens": 3}}, "must be a list of tokens"),
    "pad": ({"special_tokens_map": {"pad_token": 3}}, "pad_token is 3; it must be a token's text"),
}


@pytest.mark.parametrize(("files", "message"), DISAGREEING.values(), ids=DISAGREEING)
def test_files_that_disagree_or_are_broken_are_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_tokenizer(published(tmp_path, **files))


# What is not done as the files say is told


def model_of(folder: Path, **values: Any) -> Path:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"] |= values
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def test_dropout_is_turned_off_and_told(tmp_path, capsys):
    folder = model_of(published(tmp_path / "tok", {"eos_token": END}), dropout=0.3)
    tokenizer = subword(folder)
    assert f"{folder / 'tokenizer.json'}: dropout=0.3 is turned off" in capsys.readouterr().err
    assert tokenizer.encode_batch(TEXTS) == [RAW.encode(text).ids for text in TEXTS]
    tokenizer.save(tmp_path / "copy")
    subword(tmp_path / "copy")
    assert capsys.readouterr().err == ""


def test_wishes_that_the_file_does_not_fulfil_are_told_with_an_example(tmp_path, capsys):
    wishes = {"add_prefix_space": True, "do_lower_case": True, "add_eos_token": True}
    others = {"add_bos_token": False, "strip_accents": None, "eos_token": END}
    folder = published(tmp_path, wishes | others)
    subword(folder)
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in told] == list(wishes)
    tokens = RAW.encode("hello").tokens
    assert told[0].endswith(
        f"add_prefix_space is true, and tokenizer.json, which alone counts, does not do that: "
        f"'hello' gives {tokens}"
    )


@pytest.mark.parametrize("files", [{}, {"added_tokens": {}}])
def test_an_empty_vocabulary_is_a_message(tmp_path, files):
    folder = published(tmp_path, **files)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"] = []
    data["model"] |= {"vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="its vocabulary is empty"):
        load_tokenizer(folder)


# Any files

FLAGS = st.fixed_dictionaries({}, optional={key: st.booleans() for key in ("lstrip", "normalized")})
TEXT = st.sampled_from([END, "the", "<x>", " year", "<none>"])
MARKS = st.dictionaries(
    st.sampled_from(["eos_token", "bos_token", "pad_token", "mask_token", "image_token"]),
    st.none()
    | TEXT
    | FLAGS.flatmap(lambda flags: TEXT.map(lambda text: {"content": text} | flags)),
)
NEW = st.permutations(["<x>", "<y>", "hello"]).flatmap(
    lambda texts: st.integers(0, 3).map(lambda count: texts[:count])
)
DECODER = NEW.flatmap(
    lambda texts: st.tuples(*(FLAGS for _ in texts)).map(
        lambda flags: {
            str(400 + at): {"content": text} | flags[at] for at, text in enumerate(texts)
        }
    )
)
CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "tokenizer_class": st.sampled_from(CLASSES),
        "added_tokens_decoder": DECODER,
        "extra_special_tokens": st.lists(TEXT) | st.dictionaries(st.sampled_from("ab"), TEXT),
        "additional_special_tokens": st.lists(TEXT),
        "split_special_tokens": st.booleans(),
        "add_prefix_space": st.booleans(),
    },
)
BY_ID = NEW.map(lambda texts: {text: 400 + at for at, text in enumerate(texts)})


@given(CONFIG, MARKS, st.none() | MARKS, st.none() | BY_ID)
@settings(max_examples=40)
def test_whatever_the_files_say_the_copy_agrees(config, marks, special, listed):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = {"special_tokens_map": special, "added_tokens": listed}
        try:
            tokenizer = subword(published(folder / "tok", config | marks, **files))
        except UserError:
            reject()  # the files disagree
        agrees_with_its_copy(tokenizer, folder / "copy", [*MARKED, " <x> the  <y> hello  year"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        "eos_token",
        "x_token",
        "added_tokens_decoder",
        "additional_special_tokens",
        "extra_special_tokens",
        "add_prefix_space",
        "tokenizer_class",
        "<x>",
    ]
)


@given(*[JSON | st.dictionaries(KEYS, JSON | DECODER) for _ in range(3)])
def test_whatever_the_files_hold_loading_succeeds_or_ends_in_a_message(config, special, listed):
    with tempfile.TemporaryDirectory() as place:
        files = {"config": config, "special_tokens_map": special, "added_tokens": listed}
        folder = published(Path(place), **files)
        with contextlib.suppress(UserError):
            load_tokenizer(folder).save(Path(place, "copy"))


def test_without_the_file_the_ids_are_those_of_transformers_and_a_note_says_so(tmp_path, capsys):
    from transformers import AutoTokenizer

    state = json.loads(RAW.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in state["merges"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert subword(tmp_path).encode_batch(TEXTS) == [theirs.encode(text) for text in TEXTS]
    assert f"note: {tmp_path} has no tokenizer.json" in capsys.readouterr().err
