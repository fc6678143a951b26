"""llm-preprocess: config file and flags -> PreprocessConfig -> shards and a summary."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from light_llm.errors import UserError

if TYPE_CHECKING:
    from light_llm.preprocess.summary import Side, Summary

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _flag(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help)


@app.command()
def llm_preprocess(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="YAML or JSON file whose keys are the flags, with underscores. Flags override it.",
        ),
    ] = None,
    input: Annotated[
        list[str] | None,
        _flag(
            "PATH", "Text, .jsonl[.gz|.zst] or .parquet file, folder (deep) or glob. Repeatable."
        ),
    ] = None,
    hf_dataset: Annotated[
        str | None, _flag("NAME", "Instead: a Hugging Face data set, streamed, or a folder of one.")
    ] = None,
    hf_config: Annotated[
        str | None, _flag("NAME", "Its configuration, such as 20231101.en.")
    ] = None,
    hf_configs: Annotated[
        list[str] | None,
        _flag("NAME", "Several configurations, each into a subfolder. Repeatable."),
    ] = None,
    hf_split: Annotated[str | None, _flag("NAME", "Its split.  [default: train]")] = None,
    hf_revision: Annotated[
        str | None, _flag("NAME", "Its branch, tag or commit on the hub.")
    ] = None,
    output: Annotated[
        str | None, _flag("DIR", "Where train/, val/, tokenizer/ and manifest.json are written.")
    ] = None,
    include: Annotated[
        list[str] | None, _flag("PATTERN", "Of folders and globs, take these. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, _flag("PATTERN", "Of folders and globs, leave these. Repeatable.")
    ] = None,
    text_column: Annotated[
        str | None,
        _flag("NAME", "Column of the text.  [default: the first of text, content, body]"),
    ] = None,
    adapter_module: Annotated[
        str | None,
        _flag("MODULE", "Python file or module whose adapt(row) gives a row's text."),
    ] = None,
    min_length: Annotated[
        int | None, _flag("CHARS", "Skip shorter documents.  [default: 1]")
    ] = None,
    tokenizer: Annotated[
        str | None,
        _flag(
            "bpe|char|hf",
            "The kind to train; hf is loaded from --tokenizer-path.  [default: bpe]",
        ),
    ] = None,
    tokenizer_path: Annotated[
        str | None, _flag("PATH", "Train none, load this: saved, or a Hugging Face name.")
    ] = None,
    vocab_size: Annotated[int | None, _flag("N", "Of the BPE to train.  [default: 8192]")] = None,
    min_frequency: Annotated[
        int | None, _flag("N", "BPE merges no rarer pair than this.  [default: 2]")
    ] = None,
    train_characters: Annotated[
        int | None, _flag("N", "BPE is trained on so much text at most.  [default: 200000000]")
    ] = None,
    save_tokenizer: Annotated[str | None, _flag("DIR", "Save the tokenizer there too.")] = None,
    add_special_tokens: Annotated[
        bool | None,
        typer.Option(
            "--add-special-tokens/--no-add-special-tokens",
            help="Let the tokenizer's own template add its tokens to each document.",
        ),
    ] = None,
    val_fraction: Annotated[
        float | None, _flag("X", "Share of the texts to hold out.  [default: 0.01]")
    ] = None,
    shuffle_seed: Annotated[
        int | None, _flag("N", "Mix the documents' order.  [default: as sorted]")
    ] = None,
    shard_size: Annotated[
        int | None, _flag("TOKENS", "Of a shard, at most.  [default: 50000000]")
    ] = None,
    workers: Annotated[
        int | None, _flag("N", "Processes that tokenize.  [default: one per core]")
    ] = None,
    overwrite: Annotated[
        bool | None,
        typer.Option("--overwrite/--no-overwrite", help="Replace what a former run wrote to DIR."),
    ] = None,
) -> None:
    """Turn text into parquet token shards for llm-train, and train their tokenizer.

    A run that is stopped is continued by the same command.
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    path = flags.pop("config", None)
    from light_llm.configfile import read_mapping, validate
    from light_llm.preprocess.config import PreprocessConfig
    from light_llm.preprocess.pipeline import preprocess

    given = {} if path is None else read_mapping(path)
    source = "flags" if path is None else f"{path} and flags" if flags else path
    print_summary(preprocess(validate(PreprocessConfig, given | flags, source)))


def print_summary(summary: Summary) -> None:
    from light_llm.preprocess.notices import counted

    train, val = summary.train, summary.val
    characters = train.characters + val.characters
    tokens = train.tokens + val.tokens
    rows = []
    for name, sides in summary.parts.items():
        for split, side in zip(("train", "val"), sides, strict=True):
            rows.append((f"{name}/{split}".lstrip("/"), _describe(side)))
    documents = counted(train.documents + val.documents, "document")
    rows += [
        ("together", f"{documents}, {counted(tokens, 'token')}"),
        ("tokenizer", f"{summary.tokenizer}, vocab_size {summary.vocab_size}"),
        ("characters per token", f"{characters / tokens:.2f}"),
    ]
    for name, value in rows:
        print(f"{name}: {value}")
    measured = "held-out text" if val.documents else "training text"
    print(f"unigram entropy of the {measured}: {summary.unigram_entropy:.3f} nats/token")


def _describe(side: Side) -> str:
    from light_llm.preprocess.notices import counted

    if not side.documents:
        return "none"
    return (
        f"{counted(side.documents, 'document')}, {counted(side.tokens, 'token')} in "
        f"{counted(side.files, 'file')}"
    )


class Terminated(BaseException):
    """By SIGTERM. Not SystemExit, which the code of an adapter may raise too."""


def main() -> None:
    """Exit code 0; 2 with one message on stderr; 128 + n on signal n, to be continued."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # any file name
    try:
        app()
    except (UserError, OSError) as error:
        print(f"llm-preprocess: {error}", file=sys.stderr)
        sys.exit(2)
    except Terminated:
        sys.exit(128 + signal.SIGTERM)
