"""llm-run: continue a text with a trained model."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from light_llm.cli import runner
from light_llm.cli.prompts import Prompt, read_prompts
from light_llm.errors import UserError
from light_llm.printing import pass_bytes

# torch and jax take seconds to import, and `--help` and a mistyped flag need neither.
if TYPE_CHECKING:
    from light_llm.checkpoint.reading import Checkpoint
    from light_llm.cli.writing import Writer
    from light_llm.models.transformer import TransformerConfig
    from light_llm.sampling import Sampling
    from light_llm.tokenizer import Tokenizer

BATCH = 32
"""Prompts that are continued at a time, unless --batch-size says otherwise."""

app = runner.new_app()


@app.command()
def run(
    prefix: Annotated[
        str | None,
        typer.Argument(
            metavar="PREFIX",
            help="checkpoints/my-run/best, or a run's folder.",
            callback=runner.user_path,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="The same, as an option.", callback=runner.user_path),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="The text to continue; may be given several times."),
    ] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='A prompt a line; of a .jsonl file, lines of {"prompt": TEXT}.',
            callback=runner.user_path,
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            help="Continue each line that is typed, after all before it; Ctrl-D ends.",
        ),
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", help="Write at most this many tokens.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option(metavar="X", help="0 always takes the most probable token.")
    ] = 0.8,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="N", help="Choose among this many of the most probable tokens."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Choose among the fewest tokens that have this probability together."
        ),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(metavar="X", help="Over 1, tokens that occurred become less probable.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="The same seed writes the same text.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Prompts at a time.  [default: all, but at most {BATCH}]"),
    ] = None,
    backend: Annotated[str, typer.Option(metavar="NAME", help="torch or jax.")] = "torch",
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="cpu, cuda, mps or tpu, also as cuda:1.  [default: the fastest]"
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(metavar="NAME", help="float32, bfloat16 or float16, of weights and matmuls."),
    ] = "float32",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Instead of the checkpoint's own.",
            callback=runner.user_path,
        ),
    ] = None,
    version: Annotated[bool, runner.version_option()] = False,
) -> None:
    """Print a text and how the model of a checkpoint continues it, as it is written.

    Several texts are continued together; each is printed when it is complete.
    """
    from light_llm.sampling import Sampling

    if sys.stdout is None or (interactive and sys.stdin is None):
        raise UserError("standard input or output is closed; leave both open")
    if (prefix is None) == (checkpoint is None):
        fault = "no checkpoint is named" if prefix is None else "two checkpoints are named"
        raise UserError(f"{fault}; give one: llm-run PREFIX --prompt TEXT")
    if not prompt and prompts_file is None and not interactive:
        raise UserError(
            "there is nothing to continue; give --prompt TEXT, --prompts-file FILE or --interactive"
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size={batch_size} must be 1 or more")
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    prompts = read_prompts(prompt or [], prompts_file)
    found, write = _writer(
        str(prefix or checkpoint),
        prompts,
        sampling,
        batch_size or BATCH,
        backend,
        device,
        dtype,
        tokenizer,
    )
    pass_bytes(sys.stdout)
    try:
        if interactive:
            from light_llm.cli.conversation import banner, converse

            converse(write, prompts, banner(found, write, backend, dtype))
        else:
            write(prompts)
    except KeyboardInterrupt:
        typer.echo()  # the next output in the terminal begins on a new line
        raise


def main() -> None:
    # `| head` ends it without a message
    runner.run("llm-run", app, ended_by=[signal.SIGPIPE])


def _writer(
    prefix: str,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_size: int,
    backend: str,
    device: str | None,
    dtype: str,
    tokenizer_path: str | None,
) -> tuple[Checkpoint, Writer]:
    """Load everything that is needed to continue these prompts, and others."""
    from light_llm.checkpoint.reading import model_config, read_checkpoint, tag_of
    from light_llm.cli.backends import BACKEND, DTYPES
    from light_llm.cli.writing import Encoder, Writer

    if backend not in BACKEND:
        raise UserError(f"--backend={backend!r} must be {' or '.join(BACKEND)}")
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype!r} must be {', '.join(DTYPES)}")
    tag = str(tag_of(prefix))
    found = read_checkpoint(tag)
    cfg = model_config(found)
    encode = Encoder(_tokenizer(found, tokenizer_path, cfg), cfg, sampling)
    encode(prompts)  # before a framework is imported and weights are read
    # by name, so that it is looked up again: a run may save while the framework is imported
    generate = BACKEND[backend](tag, device, dtype)
    return found, Writer(encode, generate, batch_size, found.snapshot.get("seq_len"))


def _tokenizer(checkpoint: Checkpoint, path: str | None, cfg: TransformerConfig) -> Tokenizer:
    """The tokenizer of `path`, else that of the checkpoint.

    Raises:
        UserError: there is none, it cannot be loaded, or it has more ids than the model.
    """
    from light_llm.checkpoint.tokenizer import check_vocabulary, chosen_tokenizer

    if path == "":
        raise UserError("--tokenizer is empty; name a folder, a file or a Hugging Face tokenizer")
    try:
        found = chosen_tokenizer(checkpoint, path)
    except UserError as error:
        if path is not None:
            raise
        raise UserError(f"{error}; --tokenizer PATH names another") from None
    if found is None:
        raise UserError(
            f"{checkpoint.files.prefix}: no tokenizer lies beside it, and tokenizer_path is "
            "not set in the checkpoint's config; name its tokenizer with --tokenizer PATH"
        )
    check_vocabulary(found, cfg, "name the tokenizer of its training data with --tokenizer")
    return found.tokenizer
