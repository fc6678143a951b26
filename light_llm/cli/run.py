"""llm-run: continue a text with a trained model."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from light_llm.cli import runner
from light_llm.errors import UserError
from light_llm.printing import shown, tell

# torch and jax take seconds to import, and `--help` and a mistyped flag need neither.
if TYPE_CHECKING:
    from light_llm.models.transformer import TransformerConfig
    from light_llm.sampling import Sampling
    from light_llm.tokenizer import Tokenizer

app = runner.new_app()


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
        int | None, typer.Option(help="Choose among this many of the most probable tokens.")
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
    version: Annotated[bool, runner.version_option()] = False,
) -> None:
    """Print a text and how the model of a checkpoint continues it, as it is written."""
    from light_llm.sampling import Sampling

    if sys.stdout is None or (interactive and sys.stdin is None):
        raise UserError("standard input or output is closed; leave both open")
    if prompt is None and not interactive:
        raise UserError("there is nothing to continue; give --prompt TEXT or --interactive")
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    write = _writer(checkpoint, sampling, backend, device, dtype, tokenizer, prompt)
    try:
        if interactive:
            _converse(write, prompt)
        elif prompt is not None:
            write(prompt)
    except KeyboardInterrupt:
        typer.echo()  # the next output in the terminal begins on a new line
        raise


def main() -> None:
    # `| head` ends it without a message
    runner.run("llm-run", app, ended_by=[signal.SIGPIPE])


def _converse(write: Callable[[str], None], line: str | None) -> None:
    """Continue `line`, then each line of standard input.

    Ctrl-C ends a continuation; between continuations it ends the run.
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
                tell(f"llm-run: {error}")
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
    """Load everything that is needed; the result prints a prompt and its continuation."""
    from light_llm.checkpoint.layout import model_config, read_checkpoint
    from light_llm.cli.backends import BACKEND, DTYPES
    from light_llm.sampling import check_prompts
    from light_llm.text import decoded, encode_prompt

    if backend not in BACKEND:
        raise UserError(f"--backend={backend!r} must be {' or '.join(BACKEND)}")
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype!r} must be {', '.join(DTYPES)}")
    found = read_checkpoint(checkpoint)
    cfg = model_config(found)
    tokenizer = _tokenizer(checkpoint, found.snapshot.get("tokenizer_path"), tokenizer_path, cfg)

    def encode(text: str) -> list[int]:
        ids = encode_prompt(tokenizer, text)
        check_prompts(cfg, [ids], sampling)
        return ids

    past_training = _PastTraining(found.snapshot.get("seq_len"))
    if prompt is not None:
        encode(prompt)  # before a framework is imported and weights are read
    # by name, so that it is looked up again: a run may save while the framework is imported
    generate = BACKEND[backend](checkpoint, device, dtype)

    def write(text: str) -> None:
        prompt_ids = encode(text)
        times = [time.perf_counter()]
        ids = generate(prompt_ids, sampling, tokenizer.eos_id)
        with _interruptible() as check:
            _write(text)
            for piece in decoded(tokenizer, prompt_ids, _timed(ids, times)):
                check()
                _write(piece)
        typer.echo()
        count = len(times) - 1
        if count < sampling.max_tokens and len(prompt_ids) + count == cfg.max_seq_len:
            tell(f"stopped at the model's max_seq_len={cfg.max_seq_len}")
        past_training.check(len(prompt_ids) + count)
        tell(_speed(times))

    return write


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises KeyboardInterrupt at once, and in the function given if that was caught.

    A framework's first calls run much code that catches whatever is raised.
    """
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


class _PastTraining:
    """Warns once that a text is longer than the windows that the model was trained on."""

    def __init__(self, seq_len: object) -> None:
        self._seq_len = seq_len if isinstance(seq_len, int) else None  # another trainer's: unknown

    def check(self, length: int) -> None:
        if self._seq_len is not None and length > self._seq_len:
            tell(
                f"the model was trained on windows of seq_len={self._seq_len} tokens; what it "
                "writes after that many may make less sense"
            )
            self._seq_len = None


def _write(text: str) -> None:
    """Write data unchanged into a file or a pipe; typer's echo would strip colours there."""
    sys.stdout.write(shown(text))
    sys.stdout.flush()


def _timed(ids: Iterator[int], times: list[float]) -> Iterator[int]:
    """The ids; the time is noted when each has been printed."""
    for id in ids:
        yield id
        times.append(time.perf_counter())


def _speed(times: Sequence[float]) -> str:
    """The speed, from the times of the start and of each token."""
    count = len(times) - 1
    if count < 2:
        return f"{count} token{'s' * (count != 1)} in {times[-1] - times[0]:.2f} s"
    rate = (count - 1) / (times[-1] - times[1])
    first = times[1] - times[0]
    return f"{count} tokens, the first after {first:.2f} s, then {rate:.1f} tokens/s"


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
        tokenizer = load_tokenizer(chosen, fetch=path is not None)
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
