"""llm-preprocess: flags -> PreprocessConfig -> shards and a summary."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from light_llm.errors import UserError

if TYPE_CHECKING:
    from light_llm.preprocess.pipeline import Part, Summary

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def llm_preprocess(
    input: Annotated[
        list[str],
        typer.Option(
            metavar="PATH",
            help="Text, .jsonl[.gz|.zst] or .parquet file, folder (deep) or glob. Repeatable.",
        ),
    ],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Where train/, val/ and tokenizer/ are written.")
    ],
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Of folders and globs, take these. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Of folders and globs, leave these. Repeatable."),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of .jsonl and .parquet files.  [default: text]"),
    ] = None,
    min_length: Annotated[
        int | None,
        typer.Option(metavar="CHARS", help="Skip shorter documents.  [default: 1]"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="bpe|char|hf",
            help="The kind to train; hf is loaded from --tokenizer-path.  [default: bpe]",
        ),
    ] = None,
    tokenizer_path: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Train none, load this: saved, or a Hugging Face name."),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(metavar="N", help="Of the BPE to train.  [default: 8192]")
    ] = None,
    min_frequency: Annotated[
        int | None,
        typer.Option(metavar="N", help="BPE merges no rarer pair than this.  [default: 2]"),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(metavar="X", help="Share of the texts to hold out.  [default: 0.01]"),
    ] = None,
    shuffle_seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Mix the documents' order.  [default: as sorted]"),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Of a shard, at most.  [default: 50000000]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads that tokenize.  [default: one per core]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what a former run wrote to DIR.")
    ] = False,
) -> None:
    """Turn text into parquet token shards for llm-train, and train their tokenizer."""
    given = {name: value for name, value in locals().items() if value is not None}
    from light_llm.configfile import validate
    from light_llm.preprocess.config import PreprocessConfig
    from light_llm.preprocess.pipeline import preprocess

    print_summary(preprocess(validate(PreprocessConfig, given, "flags")))


def print_summary(summary: Summary) -> None:
    train, val = summary.train, summary.val
    characters = train.characters + val.characters
    tokens = train.tokens + val.tokens
    rows = [
        ("train", _describe(train)),
        ("val", _describe(val) if val.documents else "none"),
        ("together", f"{train.documents + val.documents:,} documents, {tokens:,} tokens"),
        ("tokenizer", f"{summary.tokenizer}, vocab_size {summary.vocab_size}"),
        ("characters per token", f"{characters / tokens:.2f}"),
    ]
    for name, value in rows:
        print(f"{name}: {value}")
    measured = "held-out text" if val.documents else "training text"
    print(f"unigram entropy of the {measured}: {summary.unigram_entropy:.3f} nats/token")


def _describe(part: Part) -> str:
    files = "1 file" if part.files == 1 else f"{part.files} files"
    return f"{part.documents:,} documents, {part.tokens:,} tokens in {files}"


def main() -> None:
    """Exit code 0; 2 with one message on stderr; 128 + n on signal n, with nothing left behind."""

    def stop(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        app()
    except (UserError, OSError) as error:
        print(f"llm-preprocess: {error}", file=sys.stderr)
        sys.exit(2)
