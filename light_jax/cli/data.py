"""llm-data: what shards and their windows hold. Imports the rest lazily: --help is instant."""

from __future__ import annotations

import json
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from light_llm.cli import runner
from light_llm.errors import UserError
from light_llm.printing import say, shown

if TYPE_CHECKING:
    from light_jax.config import TrainingConfig
    from light_jax.data.mixed import Stream
    from light_jax.data.stats import Stats
    from light_llm.tokenizer import Tokenizer

app = runner.new_app()
PNG = Path("data-stats.png")

PATH = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Folders, files or globs, as in train_data; or a config, for its train_data.",
        callback=runner.user_path,
    ),
]
TOKENIZER = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="PATH",
        help="Folder, file or Hugging Face name.  [default: `tokenizer` beside the shards]",
        callback=runner.user_path,
    ),
]


class WindowOrder(StrEnum):
    """As the config's key of this name."""

    sequential = "sequential"
    shuffled = "shuffled"


@app.callback()
def llm_data(version: Annotated[bool, runner.version_option()] = False) -> None:
    """Look at parquet token shards."""


@app.command()
def stats(
    path: PATH,
    tokenizer: TOKENIZER = None,
    top: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many of the most common tokens.")
    ] = 20,
    png: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Where the picture goes; it is replaced.  [default: {PNG}]",
            callback=runner.user_path,
        ),
    ] = None,
    no_png: Annotated[bool, typer.Option("--no-png", help="Draw nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; draw only with --png.")
    ] = False,
) -> None:
    """Count documents, tokens and lengths, and draw them. Reads every token once."""
    from light_jax.data.stats import as_json as in_json
    from light_jax.data.stats import count, draw, require_matplotlib
    from light_jax.sources import paths_of

    if png is not None and no_png:
        raise UserError("--png and --no-png exclude each other; use one")
    picture = None if no_png or (as_json and png is None) else png or PNG
    if picture is not None:
        require_matplotlib()  # before minutes of counting
    cfg = config_of(path)
    paths = path if cfg is None else paths_of(cfg.train_data)
    known, note = find_tokenizer(paths, tokenizer)
    counted = count(paths, "PATH" if cfg is None else "train_data")
    sources = [] if cfg is None else sources_of(cfg)
    if as_json:

        def text_of(id: int) -> str | None:
            return None if known is None else known.decode([id], False)

        report = in_json(counted, top, text_of)
        report |= {"tokenizer": None if known is None else note}
        print(shown(json.dumps(report | ({"sources": sources} if sources else {}))))
    else:
        for each in sources:
            say(
                f"{'source':<12} {each['name']}: {each['share']:.2%} of the windows, "
                f"{each['documents']:,} documents, {each['tokens']:,} tokens"
            )
        _print(counted, known, note, top)
    if picture is not None:
        draw(counted, " ".join(path), picture)
        if not as_json:
            say(f"\ndrawn in {picture}")


def _print(counted: Stats, known: Tokenizer | None, note: str, top: int) -> None:
    for name, value in describe(counted):
        say(f"{name:<12} {value}")
    say(f"{'tokenizer':<12} {note}")
    _doubt(known, counted.ids[0].tolist()[-1:])
    if top:
        say(f"\nthe {min(top, len(counted.ids[0]))} most common tokens")
        for token, times in counted.most_common(top):
            text = "" if known is None else f"  {known.decode([token], False)!r}"
            say(f"{token:>12} {times:>16,} {times / counted.tokens:8.3%}{text}")


@app.command()
def show(
    path: PATH,
    window: Annotated[
        int, typer.Option(min=0, max=2**62, metavar="G", help="Of the endless stream.")
    ] = 0,
    seq_len: Annotated[
        int | None,
        typer.Option(min=1, metavar="T", help="The config's seq_len.  [default: 1024]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="The config's seed.  [default: 42]")
    ] = None,
    window_order: Annotated[
        WindowOrder | None,
        typer.Option(help="The config's window_order.  [default: sequential]"),
    ] = None,
    tokenizer: TOKENIZER = None,
) -> None:
    """Print window G, which is row r of micro-batch a of step n, from 0:
    G = (n · gradient_accumulation_steps + a) · batch_size + r."""
    from light_jax.data.mixed import stream_of
    from light_jax.sources import paths_of

    cfg = config_of(path)
    known, note = find_tokenizer(path if cfg is None else paths_of(cfg.train_data), tokenizer)
    given = {"seq_len": seq_len, "seed": seed, "window_order": window_order and window_order.value}
    defaults = {"seq_len": 1024, "seed": 42, "window_order": "sequential"}
    options = {
        key: value if value is not None else defaults[key] if cfg is None else getattr(cfg, key)
        for key, value in given.items()
    }
    data, field = (path, "PATH") if cfg is None else (cfg.train_data, "train_data")
    stream = stream_of(data, **options, field=field)
    tokens = stream[window].tolist()
    settings = f"seq_len {stream.seq_len}, seed {stream.seed}"
    say(f"window    {window}: {_place(stream, window)} ({settings})")
    for shard, first, last in stream.locate(window):
        rows = f"row {first}" if first == last else f"rows {first} to {last}"
        say(f"shard     {shard}: {rows}")
    say(f"tokenizer {note}")
    _doubt(known, tokens)
    print()
    print(*tokens) if known is None else print(shown(known.decode(tokens, False)))


def _place(stream: Stream, window: int) -> str:
    """Where a window stands in its epoch, and of a mixture in its source's."""
    import numpy as np

    from light_jax.data import MixedStream

    of_source = ""
    if isinstance(stream, MixedStream):
        sources, numbers = stream.mixture.at(np.array([window]))
        source, window = int(sources[0]), int(numbers[0])
        of_source = f" of source {stream.names[source]}, whose window {window} it is"
        stream = stream.streams[source]
    epoch, number = divmod(int(stream.unshuffled(np.array([window]))[0]), len(stream))
    return f"number {number} of the {len(stream)} of epoch {epoch}{of_source}"


def config_of(path: list[str]) -> TrainingConfig | None:
    """The config that PATH names instead of shards, by its ending."""
    if len(path) > 1 or not path[0].endswith((".yaml", ".yml", ".json")):
        return None
    from light_jax.config import load_config

    return load_config(path[0])


def sources_of(cfg: TrainingConfig) -> list[dict[str, Any]]:
    """What each source of a mixture has, from the footers of its shards."""
    from light_jax.data.index import index_shards
    from light_jax.data.mixture import proportions
    from light_jax.sources import is_mixture

    if not is_mixture(cfg.train_data):
        return []
    parts = proportions([source.weight or 1.0 for source in cfg.train_data])
    found = []
    for source, part in zip(cfg.train_data, parts, strict=True):
        shards = index_shards(source.path)
        numbers = {
            "shards": len(shards),
            "documents": sum(int(shard.rows.sum()) for shard in shards),
            "tokens": sum(int(shard.tokens.sum()) for shard in shards),
        }
        found.append({"name": source.label, "share": part / sum(parts), **numbers})
    return found


def _doubt(known: Tokenizer | None, ids: list[int]) -> None:
    """A warning if this tokenizer cannot have made these ids."""
    if known is not None and max(ids, default=0) >= known.vocab_size:
        say(f"which has ids below {known.vocab_size} only: not that of these shards?")


def describe(counted: Stats) -> list[tuple[str, str]]:
    """The lines that `stats` prints, name and value."""
    shards = counted.shards
    groups = sum(len(shard.rows) for shard in shards)
    values, empty = counted.lengths[0], counted.empty
    mean = counted.tokens / counted.documents
    marks = {"median": 0.5, "90 %": 0.9, "99 %": 0.99}
    quantiles = ", ".join(f"{name} {counted.length_at(at):,}" for name, at in marks.items())
    lines = [
        ("shards", f"{len(shards):,} ({sum(shard.size for shard in shards) / 1e6:,.1f} MB)"),
        ("row groups", f"{groups:,}"),
        ("documents", f"{counted.documents:,}" + (f", {empty:,} of them empty" if empty else "")),
        ("tokens", f"{counted.tokens:,}"),
        (
            "lengths",
            f"mean {mean:,.1f}, least {values[0]:,}, {quantiles}, greatest {values[-1]:,}",
        ),
    ]
    if counted.tokens:
        ids = counted.ids[0]
        lines += [
            ("ids", f"{len(ids):,} occur, from {ids[0]} to {ids[-1]}"),
            ("entropy", f"{counted.entropy:.3f} nats a token (of single tokens)"),
        ]
    return lines


def find_tokenizer(paths: list[str], given: str | None) -> tuple[Tokenizer | None, str]:
    """The tokenizer of --tokenizer, or the one beside the shards; and the line to print on it."""
    from light_jax.data.shards import expand
    from light_llm.preprocess.listing import folder_of, tokenizer_beside
    from light_llm.tokenizer import load_tokenizer

    if given is not None:
        return load_tokenizer(given), given
    folder = folder_of(expand(paths, "PATH")[0])
    beside = tokenizer_beside(folder)
    if beside is not None:
        return load_tokenizer(beside, fetch=False), str(beside)
    return None, f"none in {folder} or the two folders above; ids are shown, --tokenizer names one"


def main() -> None:
    runner.run("llm-data", app, ended_by=[signal.SIGINT])
