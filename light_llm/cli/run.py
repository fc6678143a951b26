"""llm-run: continue a text with a trained model."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from light_llm.errors import UserError

# torch and jax take seconds to import, and `--help` and a mistyped flag need neither.
if TYPE_CHECKING:
    import jax
    import torch

    from light_llm.models.transformer import TransformerConfig
    from light_llm.sampling import Sampling
    from light_llm.tokenizer import StreamDecoder, Tokenizer

DTYPES = ("float32", "bfloat16", "float16")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    app()


@app.command()
def run(
    checkpoint: Annotated[
        str, typer.Option(metavar="PREFIX", help="As in checkpoints/my-run/best.")
    ],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The text to continue.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Continue each line that is typed; Ctrl-D ends.")
    ] = False,
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
    backend: Annotated[str, typer.Option(help="torch or jax.")] = "torch",
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, mps or tpu, also as cuda:1; the fastest by default."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16, of weights and matmuls.")
    ] = "float32",
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Instead of the tokenizer_path of the checkpoint."),
    ] = None,
) -> None:
    """Print a text and how the model of a checkpoint continues it, as it is written."""
    from light_llm.sampling import Sampling

    try:
        if sys.stdout is None or (interactive and sys.stdin is None):
            raise UserError("standard input or output is closed; leave both open")
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        if prompt is None and not interactive:
            raise UserError("there is nothing to continue; give --prompt TEXT or --interactive")
        sampling = Sampling(max_tokens, temperature, top_k, top_p, repetition_penalty, seed)
        write = _writer(checkpoint, sampling, backend, device, dtype, tokenizer, prompt)
        if interactive:
            _converse(write, prompt)
        elif prompt is not None:
            write(prompt)
    except UserError as error:
        typer.echo(f"llm-run: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:  # a name too long for the file system, a full disk behind `>`
        where = "" if error.filename is None else f"{str(error.filename)[:80]}: "
        typer.echo(f"llm-run: {where}{error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what was not written will not be
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo()
        raise typer.Exit(130) from None


def _converse(write: Callable[[str], None], line: str | None) -> None:
    """Continue `line`, then each line of standard input.

    Ctrl-C ends a continuation, or between two of them the run.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then knows the arrow keys)
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    question = "> " if sys.stdin.isatty() else ""
    while True:
        if line:
            try:
                write(line)
            except UserError as error:
                typer.echo(f"llm-run: {error}", err=True)
            except KeyboardInterrupt:
                typer.echo()
        try:
            line = input(question)
        except EOFError:
            typer.echo()
            return


def _writer(
    checkpoint: str,
    sampling: Sampling,
    backend: str,
    device: str | None,
    dtype: str,
    tokenizer_path: str | None,
    prompt: str | None,
) -> Callable[[str], None]:
    """Loads all that is needed; what it returns prints a prompt and its continuation."""
    from light_llm.checkpoint.layout import model_config, read_checkpoint
    from light_llm.sampling import check_prompts

    if backend not in BACKEND:
        raise UserError(f"--backend={backend!r} must be {' or '.join(BACKEND)}")
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype!r} must be {', '.join(DTYPES)}")
    found = read_checkpoint(checkpoint)
    cfg = model_config(found)
    tokenizer = _tokenizer(checkpoint, found.snapshot.get("tokenizer_path"), tokenizer_path, cfg)

    def encode(text: str) -> list[int]:
        ids = _encode(tokenizer, text)
        check_prompts(cfg, [ids], sampling)
        return ids

    if prompt is not None:
        encode(prompt)  # before a framework is imported and weights are read
    # by name, to be looked up again: a run may save while the framework is imported
    generate = BACKEND[backend](checkpoint, device, dtype)

    def write(text: str) -> None:
        prompt_ids = encode(text)
        decoder = _decoder_after(tokenizer, prompt_ids)
        start = time.perf_counter()
        ids = generate(prompt_ids, sampling, tokenizer.eos_id)
        typer.echo(text, nl=False)
        times = [start]
        for id in ids:
            typer.echo(decoder.add(id), nl=False)
            times.append(time.perf_counter())
        typer.echo(decoder.flush())
        count = len(times) - 1
        if count < sampling.max_tokens and len(prompt_ids) + count == cfg.max_seq_len:
            typer.echo(f"stopped at the model's max_seq_len={cfg.max_seq_len}", err=True)
        typer.echo(_speed(times), err=True)

    return write


def _speed(times: Sequence[float]) -> str:
    """What the times of the start and of each token say."""
    count = len(times) - 1
    if count < 2:
        return f"{count} token{'s' * (count != 1)} in {times[-1] - times[0]:.2f} s"
    rate = (count - 1) / (times[-1] - times[1])
    first = times[1] - times[0]
    return f"{count} tokens, the first after {first:.2f} s, then {rate:.1f} tokens/s"


Generate = Callable[["list[int]", "Sampling", "int | None"], Iterator[int]]


def _torch(checkpoint: str, device: str | None, dtype: str) -> Generate:
    try:
        import torch
    except ImportError:
        raise UserError(
            "--backend=torch needs PyTorch; pip install 'light-llm-jax[torch]', or use "
            "--backend jax"
        ) from None

    from light_llm.checkpoint.loading import load_transformer
    from light_llm.generate import generate

    chosen = str(_torch_device(device))
    model = load_transformer(checkpoint, device=chosen, dtype=getattr(torch, dtype))
    return lambda ids, sampling, eos_id: generate(model, ids, sampling, eos_id)


def _torch_device(name: str | None) -> torch.device:
    """The device of that name, else the fastest there is.

    Raises:
        UserError: no such device here.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["cpu"] = True
    if name is None:
        return torch.device(next(kind for kind, available in there.items() if available))
    legal = ", ".join(kind for kind, available in there.items() if available)
    kind, index = _split_device(name, "cpu", "cuda", "mps")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not there[kind] or index >= count:
        raise UserError(f"--device={name!r} is not available to PyTorch here; use {legal}")
    return torch.device(kind, index)


def _jax(checkpoint: str, device: str | None, dtype: str) -> Generate:
    import jax

    from conversion import load_jax
    from light_jax.generate import generate, moved

    chosen = _jax_device(device)
    with jax.default_device(jax.devices("cpu")[0]):
        model = moved(load_jax(checkpoint), dtype, chosen)
    return lambda ids, sampling, eos_id: generate(model, ids, sampling, eos_id)


def _jax_device(name: str | None) -> jax.Device:
    """The device of that name, else JAX's own choice.

    Raises:
        UserError: no such device here.
    """
    import jax

    if name is None:
        return jax.devices()[0]
    kind, index = _split_device(name, "cpu", "cuda", "tpu")
    try:
        return jax.devices(kind)[index]
    except (RuntimeError, IndexError):
        here = ", ".join(sorted({jax.default_backend(), "cpu"}))
        raise UserError(f"--device={name!r} is not available to JAX here; use {here}") from None


def _split_device(name: str, *kinds: str) -> tuple[str, int]:
    """`cuda:1` -> ("cuda", 1); without a number, the first."""
    match = re.fullmatch(rf"({'|'.join(kinds)})(?::([0-9]{{1,4}}))?", name)
    if match is None:
        raise UserError(
            f"--device={name!r} must be {', '.join(kinds)}, or one with a number: cuda:1"
        )
    return match[1], int(match[2] or 0)


BACKEND: dict[str, Callable[[str, str | None, str], Generate]] = {"torch": _torch, "jax": _jax}


def _tokenizer(
    checkpoint: str, configured: object, path: str | None, cfg: TransformerConfig
) -> Tokenizer:
    """The tokenizer of `path`, else the one that the checkpoint's config names.

    Raises:
        UserError: neither names one, it cannot be loaded, or it has more ids than the model.
    """
    from light_llm.tokenizer import load_tokenizer

    chosen = configured if path is None else path
    if not isinstance(chosen, str | None):
        raise UserError(
            f"{checkpoint}: tokenizer_path={chosen!r} of the checkpoint's config must be a string; "
            f"name its tokenizer with --tokenizer PATH"
        )
    if path == "":
        raise UserError("--tokenizer is empty; name a folder, a file or a Hugging Face tokenizer")
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
    """The prompt's ids, as llm-preprocess begins a document.

    Raises:
        UserError: there is no text, or it is not Unicode.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:  # how Python hands over bytes of the command line that are not UTF-8
        raise UserError("the prompt is not valid UTF-8; give it in that encoding") from None
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError(f"the prompt {prompt!r} holds no token; give some text")
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
    if bos_id is not None and bos_id != eos_id and ids[:1] != [bos_id]:
        ids = [bos_id, *ids]
    return ids


def _decoder_after(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> StreamDecoder:
    """A decoder that continues the prompt (alone, SentencePiece would drop a leading space)."""
    from light_llm.tokenizer import UNKNOWN_CHAR, StreamDecoder

    decoder = StreamDecoder(tokenizer)
    if not tokenizer.decode(prompt_ids).endswith(UNKNOWN_CHAR):  # which it would hold back
        for id in prompt_ids:
            decoder.add(id)
    return decoder
