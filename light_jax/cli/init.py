"""llm-train init: an annotated config file to start from, on stdout."""

from __future__ import annotations

import re
import sys
from importlib import resources
from typing import Annotated

import typer

from light_llm.cli import runner
from light_llm.errors import UserError
from light_llm.printing import shown, tell

app = runner.new_app(completion=False)

# The names that a user types, and the files of configs/, which a wheel has in the package.
SHIPPED = {
    "quickstart": "quickstart.yaml",
    "small": "small.yaml",
    "medium": "medium.yaml",
    "complex": "experiment_complex_attn.yaml",
}


@app.command()
def init(
    name: Annotated[
        str, typer.Argument(metavar="|".join(SHIPPED), help="The model to start from.")
    ] = "quickstart",
    version: Annotated[bool, runner.version_option()] = False,
) -> None:
    """Print an annotated config file: `llm-train init small > my.yaml`."""
    if name not in SHIPPED:
        raise UserError(f"there is no config {name!r}; use one of {', '.join(SHIPPED)}")
    file = SHIPPED[name]
    text = (resources.files("light_jax") / "configs" / file).read_text(encoding="utf-8")
    print(shown(re.sub(rf"llm-train configs/{re.escape(file)}", "llm-train my.yaml", text)), end="")
    if not sys.stdout.isatty():
        tell("set train_data, val_data and tokenizer_path, and try it: llm-train FILE --check")
