"""llm-preprocess: config file and flags -> PreprocessConfig -> shards and a summary."""

from __future__ import annotations

import inspect
import signal
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from light_llm.cli import runner
from light_llm.configcheck import validate
from light_llm.configsource import ConfigSource, read_source
from light_llm.preprocess.config import (
    DEFAULT_MIN_FREQUENCY,
    DEFAULT_TRAIN_CHARACTERS,
    DEFAULT_VOCAB_SIZE,
    PreprocessConfig,
)
from light_llm.printing import say

if TYPE_CHECKING:
    from light_llm.preprocess.dryrun import Estimate
    from light_llm.preprocess.summary import Side, Summary

app = runner.new_app()

# The --help of each field of PreprocessConfig: the name of its value, and a line.
FLAGS = {
    "input": (
        "PATH",
        "Text, JSON lines, CSV or parquet: a file, folder (deep), glob, or URL. Repeatable.",
    ),
    "hf_dataset": (
        "NAME",
        "A Hugging Face dataset, streamed, instead of --input: its name, or a folder.",
    ),
    "hf_config": ("NAME", "Its configuration, such as 20231101.en."),
    "hf_configs": ("NAME", "Several configurations, each into a subfolder. Repeatable."),
    "hf_split": ("NAME", "Its split."),
    "hf_revision": ("NAME", "Its branch, tag or commit on the hub."),
    "output": ("DIR", "Where train/, val/, tokenizer/ and manifest.json are written."),
    "include": ("PATTERN", "Take only these files from folders and globs. Repeatable."),
    "exclude": ("PATTERN", "Skip these in folders and globs. Repeatable."),
    "allow_skipped": ("", "Go on where most bytes of the input are in files that are not text."),
    "text_column": ("NAME", "The column that holds the text."),
    "adapter_module": ("MODULE", "Python file or module whose adapt(row) gives a row's text."),
    "dedupe": ("exact", "Drop documents whose text an earlier one has."),
    "min_length": ("CHARS", "Skip shorter documents."),
    "tokenizer": ("bpe|char|hf", "The kind to train; hf is loaded from --tokenizer-path."),
    "tokenizer_path": ("PATH", "Load a tokenizer, train none: a path or Hugging Face name."),
    "vocab_size": ("N", "Size of the vocabulary of the trained BPE."),
    "min_frequency": ("N", "BPE merges pairs that occur this often or more."),
    "train_characters": ("N", "Train the BPE on this much text at most."),
    "save_tokenizer": ("DIR", "Save the tokenizer there too."),
    "add_special_tokens": ("", "Let the tokenizer's own template add its tokens to each document."),
    "val_fraction": ("X", "Share of the texts to hold out."),
    "shuffle_seed": ("N", "Shuffle the documents with this seed."),
    "shard_size": ("TOKENS", "Most tokens in a shard."),
    "workers": ("N", "Number of processes that tokenize, where the library tokenizers does."),
    "engine": (
        "auto|tokenizers",
        "The library that encodes: gigatoken where its ids are the same, or always tokenizers.",
    ),
    "overwrite": ("", "Replace what a previous run wrote to DIR."),
    "parts": ("N", "Cut the input's files into N parts, which several machines can make."),
    "prepare": ("", "Of --parts: make the tokenizer and the plan, once, before the parts."),
    "part": ("I", "Of --parts: make this one, from 0 to N - 1."),
    "finish": ("", "Of --parts: check that all are made, and publish them."),
    "cluster": ("ray[://HOST:PORT]", "Of --parts: do all of it, with the parts as tasks of Ray."),
}
# What None means in a field, where --help shows it as the default.
MEANING_OF_NONE = {
    "hf_split": "train",
    "text_column": "the first of text, content, body",
    "tokenizer": "bpe",
    "vocab_size": DEFAULT_VOCAB_SIZE,
    "min_frequency": DEFAULT_MIN_FREQUENCY,
    "train_characters": DEFAULT_TRAIN_CHARACTERS,
    "shuffle_seed": "as sorted",
    "workers": "one per core",
}


def llm_preprocess(config: str | None, dry_run: bool, version: bool, **flags: Any) -> None:
    """Turn text into parquet token shards for llm-train, and train their tokenizer.

    The same command continues a run that was stopped.
    """
    set_flags = {name: value for name, value in flags.items() if value is not None}
    source = _with_flags(ConfigSource(Path("flags"), {}, "", {}), set_flags)
    if config is not None:
        source = read_source(config)
        if set_flags:
            named = replace(source, path=Path(f"{config} and flags"))
            source = _with_flags(named, set_flags)
    valid = validate(PreprocessConfig, source.data, source, expand=True)
    if dry_run:
        from light_llm.preprocess.dryrun import estimate

        print_estimate(estimate(valid))
    elif valid.prepare or valid.part is not None:
        take_step(valid)
    else:
        from light_llm.preprocess.pipeline import preprocess

        print_summary(preprocess(valid))


def take_step(config: PreprocessConfig) -> None:
    """Prepare a run in parts, or make one of them, and print what is there then."""
    from light_llm.preprocess.making import make_part
    from light_llm.preprocess.notices import counted
    from light_llm.preprocess.parts import prepare
    from light_llm.preprocess.request import request_of

    request = request_of(config)
    if config.part is not None:
        made = make_part(request, config.part)
        there = f"{counted(made.documents, 'document')}, {counted(made.tokens, 'token')}"
        before = " (made before)" if made.before else ""
        say(f"part {config.part} of {config.parts}: {there}{before}")
        return
    plan = prepare(request)
    if plan is None:
        say(f"{config.output}: all parts are made and published")
        return
    files, sizes = sum(map(len, plan.parts)), list(map(plan.bytes_of, range(len(plan.parts))))
    say(f"input: {counted(files, 'file')}, {sum(sizes) / 1e6:,.1f} MB")
    say(f"parts: {len(sizes)}, of {min(sizes) / 1e6:,.1f} to {max(sizes) / 1e6:,.1f} MB")
    say("prepared: now make each with --part, and then --finish")


def _with_flags(source: ConfigSource, flags: dict[str, Any]) -> ConfigSource:
    return replace(source, data=source.data | flags, own=source.own | flags)


def _parameters() -> Iterator[inspect.Parameter]:
    """The command line: the config file, a flag for each field of PreprocessConfig, --version.

    A flag that is not given is None, so that the value of the config file stays.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    help = "YAML or JSON file whose keys are the flags, with underscores. Flags override it."
    path = typer.Argument(metavar="CONFIG", help=help)
    yield inspect.Parameter("config", keyword, default=None, annotation=Annotated[str | None, path])
    for name, field in PreprocessConfig.model_fields.items():
        metavar, help = FLAGS[name]
        default = MEANING_OF_NONE.get(name) if field.default is None else field.default
        if type(default) in (int, float, str):
            help += f"  [default: {default}]"
        kind = _type_of_flag(field.annotation)
        if kind == bool | None:
            dashed = name.replace("_", "-")
            option = typer.Option(f"--{dashed}/--no-{dashed}", help=help)
        else:
            option = typer.Option(metavar=metavar, help=help)
        yield inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind, option])
    help = "Print the files, and estimate tokens and time from a sample; write nothing."
    dry = Annotated[bool, typer.Option("--dry-run", help=help)]
    yield inspect.Parameter("dry_run", keyword, default=False, annotation=dry)
    version = Annotated[bool, runner.version_option()]
    yield inspect.Parameter("version", keyword, default=False, annotation=version)


def _type_of_flag(field: Any) -> Any:
    """The type that typer checks: a number, a switch, or else text."""
    kinds = {field, *typing.get_args(field)}
    for kind in (bool, int, float):
        if kind in kinds:
            return kind | None
    return list[str] | None if typing.get_origin(field) is tuple else str | None


llm_preprocess.__signature__ = inspect.Signature([*_parameters()])  # type: ignore[attr-defined]
app.command()(llm_preprocess)


def print_summary(summary: Summary) -> None:
    from light_llm.preprocess.notices import counted

    train, val = summary.train, summary.val
    characters = train.characters + val.characters
    tokens = train.tokens + val.tokens
    rows = []
    for name, sides in summary.parts.items():
        for split, side in zip(("train", "val"), sides, strict=True):
            rows.append((f"{name}/{split}".lstrip("/"), _describe(side)))
    for each in summary.inputs:
        came = f"{counted(each.documents, 'document')}, {counted(each.tokens, 'token')}"
        rows.append((f"from {each.name}", f"{came} ({each.tokens / tokens:.1%})"))
    documents = counted(train.documents + val.documents, "document")
    rows += [
        ("together", f"{documents}, {counted(tokens, 'token')}"),
        *_duplicates(summary),
        ("tokenizer", f"{summary.tokenizer}, vocab_size {summary.vocab_size}"),
        ("characters per token", f"{characters / tokens:.2f}"),
    ]
    for name, value in rows:
        say(f"{name}: {value}")
    measured = "held-out text" if val.documents else "training text"
    say(f"unigram entropy of the {measured}: {summary.unigram_entropy:.3f} nats/token")


def _duplicates(summary: Summary) -> Iterator[tuple[str, str]]:
    from light_llm.preprocess.notices import counted

    if summary.duplicates == 0:
        yield "duplicates", "none"
    elif summary.duplicates is not None:
        share = summary.duplicates / (summary.train.documents + summary.val.documents)
        have = "has" if summary.duplicates == 1 else "have"
        yield (
            "duplicates",
            f"{counted(summary.duplicates, 'document')} ({share:.1%}) {have} the text of an "
            "earlier one; --dedupe exact drops them",
        )


def print_estimate(found: Estimate) -> None:
    from light_llm.preprocess.notices import counted
    from light_llm.preprocess.progress import duration, short

    for path, size in found.files:
        say(f"{size / 1e6:12,.1f} MB  {path}")
    trained = ", with a tokenizer trained on the sample" if found.trains else ""
    cores = counted(found.cores, "core")
    rows = [
        ("input", f"{counted(len(found.files), 'file')}, {found.bytes / 1e6:,.1f} MB"),
        ("documents", f"about {short(found.documents)}"),
        ("characters", f"about {short(found.characters)}"),
        ("tokens", f"about {short(found.tokens)}{trained}"),
        ("characters per token", f"about {found.characters / found.tokens:.2f}"),
        ("shards", f"about {found.shard_bytes / 1e6:,.1f} MB"),
        (
            "time",
            f"about {duration(found.seconds)} on {cores} of this machine"
            + (", and the training of the tokenizer" if found.trains else ""),
        ),
    ]
    for name, value in rows:
        say(f"{name}: {value}")
    say(f"Estimated from {counted(found.sampled, 'file')} of the input. Nothing is written.")


def _describe(side: Side) -> str:
    from light_llm.preprocess.notices import counted

    if not side.documents:
        return "none"
    return (
        f"{counted(side.documents, 'document')}, {counted(side.tokens, 'token')} in "
        f"{counted(side.files, 'file')}"
    )


def main() -> None:
    # on a signal the run is left in a state from which the same command continues it
    runner.run("llm-preprocess", app, unwound_by=[signal.SIGTERM, signal.SIGINT])
