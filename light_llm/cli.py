"""llm-run: continue a text with a trained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from light_llm.errors import UserError

# torch takes seconds to import, and `--help` and a mistyped flag need none of it.
if TYPE_CHECKING:
    import torch

    from light_llm.models.transformer import TransformerConfig
    from light_llm.tokenizer import StreamDecoder, Tokenizer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    app()


@app.command()
def run(
    checkpoint: Annotated[
        str, typer.Option(metavar="PREFIX", help="As in checkpoints/my-run/best.")
    ],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The text to continue.")],
    max_tokens: Annotated[int, typer.Option(help="Write at most this many tokens.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 always takes the most probable token.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Choose among this many most probable tokens.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among the fewest tokens that have this probability together."),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Over 1, tokens that occurred become less probable.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps; the fastest there is by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of weights and matmuls.")] = (
        "float32"
    ),
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Instead of the tokenizer_path of the checkpoint."),
    ] = None,
) -> None:
    """Print TEXT and how the model of a checkpoint continues it, as it is written."""
    sampling = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    try:
        _run(checkpoint, prompt, sampling, device, dtype, tokenizer)
    except UserError as error:
        typer.echo(f"llm-run: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo()
        raise typer.Exit(130) from None


def _run(
    checkpoint: str,
    prompt: str,
    sampling: dict[str, Any],
    device: str | None,
    dtype: str,
    tokenizer_path: str | None,
) -> None:
    from light_llm.checkpoint import load_transformer, read_model_config

    cfg = read_model_config(checkpoint)
    tokenizer = _tokenizer(checkpoint, tokenizer_path, cfg)
    prompt_ids = _encode(tokenizer, prompt)

    # Only now, since it imports torch: a mistyped path is told at once.
    from light_llm.generate import check_sampling, generate

    check_sampling(**sampling)
    torch_device, torch_dtype = _device(device), _dtype(dtype)
    model = load_transformer(checkpoint, device=str(torch_device), dtype=torch_dtype)
    ids = generate(model, prompt_ids, **sampling, eos_id=tokenizer.eos_id)

    typer.echo(prompt, nl=False)
    decoder = _decoder_after(tokenizer, prompt_ids)
    start, count = time.perf_counter(), 0
    for id in ids:
        typer.echo(decoder.add(id), nl=False)
        count += 1
    typer.echo(decoder.flush())
    seconds = time.perf_counter() - start
    if count < sampling["max_tokens"] and len(prompt_ids) + count == cfg.max_seq_len:
        typer.echo(f"stopped at the model's max_seq_len={cfg.max_seq_len}", err=True)
    typer.echo(f"{count} tokens in {seconds:.1f} s, {count / seconds:.1f} tokens/s", err=True)


def _device(name: str | None) -> torch.device:
    """The device of that name, else the fastest there is.

    Raises:
        UserError: no such device here.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["cpu"] = True
    if name is None:
        return torch.device(next(kind for kind, available in there.items() if available))
    kind, _, index = name.partition(":")  # cuda:1
    legal = ", ".join(kind for kind, available in there.items() if available)
    if kind not in there or (":" in name and not index.isdecimal()):
        raise UserError(f"--device={name!r} must be cpu, cuda or mps; here, use {legal}")
    if not there[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device={name!r} is not available to PyTorch here; use {legal}")
    return torch.device(name)


def _dtype(name: str) -> torch.dtype:
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise UserError(f"--dtype={name!r} must be {' or '.join(dtypes)}")
    return dtypes[name]


def _tokenizer(checkpoint: str, path: str | None, cfg: TransformerConfig) -> Tokenizer:
    """The tokenizer of `path`, else of the checkpoint's config.

    Raises:
        UserError: neither names one, it cannot be loaded, or it has more ids than the model.
    """
    from light_llm.checkpoint import read_snapshot
    from light_llm.tokenizer import load_tokenizer

    chosen = path or read_snapshot(checkpoint).get("tokenizer_path")
    if not chosen:
        raise UserError(
            f"{checkpoint}: tokenizer_path is not set in the checkpoint's config; "
            f"name its tokenizer with --tokenizer PATH"
        )
    try:
        tokenizer = load_tokenizer(chosen)
    except UserError as error:
        if path:
            raise
        raise UserError(
            f"{error}\n(tokenizer_path of {checkpoint}; --tokenizer PATH names another)"
        ) from None
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"{chosen}: the tokenizer has {tokenizer.vocab_size} tokens, more than the model's "
            f"vocab_size={cfg.vocab_size}; name the tokenizer of its training data with --tokenizer"
        )
    return tokenizer


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids as llm-preprocess begins a document; of an empty one, the end of another."""
    ids = tokenizer.encode(prompt)
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
    if bos_id is not None and bos_id != eos_id and ids[:1] != [bos_id]:
        ids = [bos_id, *ids]
    if not ids and eos_id is not None:
        ids = [eos_id]
    if not ids:
        raise UserError(
            f"--prompt={prompt!r} holds no token, and the tokenizer has none that begins or ends a "
            f"document to start from; give some text"
        )
    return ids


def _decoder_after(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> StreamDecoder:
    """A decoder that continues the prompt (alone, SentencePiece would drop a leading space)."""
    from light_llm.tokenizer import UNKNOWN_CHAR, StreamDecoder

    decoder = StreamDecoder(tokenizer)
    if not tokenizer.decode(prompt_ids).endswith(UNKNOWN_CHAR):  # which it would hold back
        for id in prompt_ids:
            decoder.add(id)
    return decoder
