"""llm-convert: the command line. Imports the rest lazily, so that --help is instant."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from light_llm.cli import runner
from light_llm.errors import UserError
from light_llm.lazy import importing
from light_llm.printing import say

app = runner.new_app()
state = runner.new_app(completion=False)
app.add_typer(
    state, name="state", help="The optimizer state of a checkpoint, between PyTorch and JAX."
)

Prefix = Annotated[
    str,
    typer.Argument(
        metavar="PREFIX",
        help="checkpoints/my-run/best, or a run's folder.",
        callback=runner.user_path,
    ),
]
Tag = Annotated[
    str,
    typer.Argument(
        metavar="PREFIX", help="checkpoints/my-run/step0005000", callback=runner.user_path
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")]


@app.callback()
def llm_convert(version: Annotated[bool, runner.version_option()] = False) -> None:
    """Move a run between PyTorch and JAX, and a model to other programs and back."""


@state.command("from-torch")
def import_state(prefix: Tag) -> None:
    """Make a checkpoint of the PyTorch trainer (PREFIX.state.pt) one that llm-train resumes."""
    _use_the_cpu()
    from light_jax.torch_runs.bridge import import_tag

    _tell(import_tag, prefix)


@state.command("to-torch")
def export_state(prefix: Tag) -> None:
    """Write PREFIX.state.pt, from which the PyTorch trainer resumes a checkpoint of llm-train."""
    _use_the_cpu()
    from light_jax.torch_runs.bridge import export_tag

    _tell(export_tag, prefix)


@app.command("hf")
def export_to_transformers(
    prefix: Prefix,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="A new folder, or an earlier export.", callback=runner.user_path
        ),
    ],
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="float32, bfloat16 or float16, of the weights.")
    ] = "float32",
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one weights file at most.")
    ] = "5GB",
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload the folder to the hub too.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Instead of the checkpoint's own.",
            callback=runner.user_path,
        ),
    ] = None,
    no_tokenizer: Annotated[
        bool, typer.Option("--no-tokenizer", help="Write the model alone.")
    ] = False,
) -> None:
    """Write a folder that transformers loads: AutoModelForCausalLM.from_pretrained(OUT)."""
    if tokenizer is not None and no_tokenizer:
        raise UserError("--tokenizer and --no-tokenizer contradict each other; give one of them")
    with importing():
        try:
            from light_llm.hf.export import export
        except ImportError as error:
            if importlib.util.find_spec("torch") is not None:
                raise
            raise UserError(str(error)) from None
    lines = export(
        _tag(prefix),
        out,
        dtype=dtype,
        max_shard_size=max_shard_size,
        push=push,
        tokenizer=tokenizer,
        with_tokenizer=not no_tokenizer,
    )
    for line in lines:
        say(line)


@app.command("from-hf")
def import_hf(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR_OR_NAME",
            help="A folder, or HuggingFaceTB/SmolLM2-135M.",
            callback=runner.user_path,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="Writes OUT.safetensors and OUT.config.json.",
            callback=runner.user_path,
        ),
    ],
) -> None:
    """Take a Llama, Mistral, Qwen2 or Qwen3 model of Hugging Face, with its tokenizer."""
    from conversion.import_hf import import_model

    for line in import_model(source, out):
        say(line)


@app.command("gguf")
def write_gguf(
    prefix: Prefix,
    out: Annotated[
        Path, typer.Argument(metavar="OUT.gguf", help="A new file.", callback=runner.user_path)
    ],
    dtype: Annotated[
        str,
        typer.Option(metavar="NAME", help="float32, float16 or q8_0 (8 bits), of the matrices."),
    ] = "float16",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Instead of the checkpoint's own.",
            callback=runner.user_path,
        ),
    ] = None,
    no_tokenizer: Annotated[
        bool, typer.Option("--no-tokenizer", help="Write none: llama.cpp then takes ids only.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint for llama.cpp and ollama."""
    from light_llm.formats.gguf import write_gguf

    for line in write_gguf(
        _tag(prefix), out, dtype, tokenizer, with_tokenizer=not no_tokenizer, overwrite=overwrite
    ):
        say(line)


@app.command("onnx")
def write_onnx(
    prefix: Prefix,
    out: Annotated[
        Path, typer.Argument(metavar="OUT.onnx", help="A new file.", callback=runner.user_path)
    ],
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint for onnxruntime, and compare the logits."""
    from light_llm.formats.onnx import write_onnx

    for line in write_onnx(_tag(prefix), out, overwrite=overwrite):
        say(line)


def _tag(prefix: str) -> str:
    """The checkpoint that is meant, if PREFIX is a run's folder."""
    from light_llm.checkpoint.reading import tag_of

    return str(tag_of(prefix))


def _use_the_cpu() -> None:
    """Convert on the CPU: it takes memory but no arithmetic, and accelerators may be in use."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _tell(convert: Callable[[str], list[str]], prefix: str) -> None:
    for line in convert(prefix):
        say(line)


def main() -> None:
    # on a signal the files are left as they were
    runner.run("llm-convert", app, unwound_by=[signal.SIGTERM, signal.SIGINT])
