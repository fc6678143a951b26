"""What a user writes with `import light_llm` and `import light_jax`, on a run of two steps."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from in_process import call
from tiny_runs import write_config

import light_jax
import light_llm
from light_llm.cli.run import main as llm_run
from light_llm.tokenizer import train_char

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[light_jax.Result, Path]:
    """How a run ended, and its tokenizer's folder."""
    folder = tmp_path_factory.mktemp("run")
    train_char([TEXT]).save(folder / "tokenizer")
    config = write_config(folder / "c.yaml", num_steps=2, checkpoint_dir=str(folder / "out"))
    return light_jax.train(config), folder / "tokenizer"


def test_train_says_how_it_ended(trained):
    result, folder = trained
    assert result.stopped_by is None
    assert result.config.num_steps == 2
    assert result.final == result.directory / "final"
    assert result.best == result.directory / "best"
    with pytest.raises(light_jax.UserError, match="continue that one with --resume auto"):
        light_jax.train(folder.parent / "c.yaml")


def test_the_docs_lines_write_what_llm_run_writes(trained, capsys):
    """The block of docs/run.md, word for word except its paths."""
    result, tokenizer = trained
    page = (Path(__file__).parents[2] / "docs/run.md").read_text()
    (recipe,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "generate_text" in b]
    recipe = recipe.replace("checkpoints/small/best", str(result.final))
    recipe = recipe.replace("data/my-corpus/tokenizer", str(tokenizer))
    recipe = recipe.replace("Once upon a time", "the cat").replace("=100", "=5")
    exec(compile(ast.parse(recipe), "docs/run.md", "exec"), {})
    flags = ("--prompt", "the cat", "--tokenizer", tokenizer, "--seed", 0, "--max-tokens", 5)
    done = call(llm_run, "--checkpoint", result.final, "--device", "cpu", *flags)
    assert done.stdout == "the cat" + capsys.readouterr().out + "\n", done.stderr


def test_generate_is_a_function_and_a_module(trained):
    from light_llm.generate import generate

    model = light_llm.load_transformer(trained[0].final)
    sampling = light_llm.Sampling(4, seed=1)
    ids = list(generate(model, [3, 4], sampling))
    assert ids == list(light_llm.generate(model, [3, 4], sampling))
    assert len(ids) == 4
