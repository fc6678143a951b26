"""What the docs and the example configs say is what the program does."""

from __future__ import annotations

import ast
import json
import math
import re
import tomllib
import typing
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer
import yaml
from pages import PAGES, REPOSITORY, ROOT, blocks, links, name_of, prose
from tiny_runs import write_config

from conversion.mapping import table
from light_jax.checkpoint.store import MUST_MATCH
from light_jax.config import TrainingConfig, load_config
from light_jax.reporting.units import count
from light_jax.training.loop import run_config
from light_llm.configfile import Config
from light_llm.tokenizer import train_char

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


# Links


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_into_the_repository_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        if ours := re.fullmatch(re.escape(REPOSITORY) + r"/(?:blob|raw)/main/(.+)", path):
            target = ROOT / ours[1]
        elif "://" in link:
            assert not link.startswith(REPOSITORY), link
            continue
        else:
            target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


# Code


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_blocks_parse(page, tmp_path):
    for text in blocks(page, "python"):
        ast.parse(text)
    for text in blocks(page, "yaml"):
        keys = yaml.safe_load(text).keys()
        if keys <= TrainingConfig.model_fields.keys():
            missing = "" if "train_data" in keys else "train_data: shards\n"
            (tmp_path / "block.yaml").write_text(missing + text)
            load_config(tmp_path / "block.yaml")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """The checkpoint folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    changes = {"num_steps": 2, "eval_every": 1, "checkpoint_dir": str(folder / "out")}
    assert run_config(write_config(folder / "tiny.yaml", **changes)) == 0
    return folder / "out"


def test_the_readmes_recipe_loads_a_checkpoint(run_folder):
    """The block of README, word for word but for the `...` and the path."""
    (recipe,) = [b for b in blocks(ROOT / "README.md", "python") if "load_state_dict" in b]
    assert recipe.count("(...)") == recipe.count("checkpoints/my-run") == 1
    recipe = recipe.replace("(...)", "(**model_section)")
    recipe = recipe.replace("checkpoints/my-run", str(run_folder))
    config = json.loads((run_folder / "best.config.json").read_text())
    names: dict[str, typing.Any] = {"model_section": config["model"]}
    exec(recipe, names)
    logits = names["model"](torch.zeros(1, 5, dtype=torch.int64))
    assert logits.shape == (1, 5, names["cfg"].vocab_size)
    assert torch.isfinite(logits).all()


def test_the_readmes_five_lines_continue_a_text(run_folder, tmp_path, capsys):
    """Word for word but for the paths: the tiny model has 131 ids, and so has this tokenizer."""
    (lines,) = [b for b in blocks(ROOT / "README.md", "python") if "generate_text" in b]
    assert len(lines.split("\n\n")[1].splitlines()) == 4  # and an import
    train_char(map(chr, range(32, 161))).save(tmp_path / "tokenizer")
    for path, here in [
        ("checkpoints/quickstart/best", run_folder / "best"),
        ("data/quickstart/tokenizer", tmp_path / "tokenizer"),
    ]:
        assert lines.count(path) == 1
        lines = lines.replace(path, str(here))
    exec(lines, {})
    assert len(capsys.readouterr().out) > 1


def test_every_logged_number_is_explained(run_folder):
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    logged = {name for line in lines for name in json.loads(line)}
    text = (ROOT / "docs/train.md").read_text()
    assert logged
    assert [name for name in logged if f"`{name}`" not in text] == []


def test_what_a_resume_must_match_is_listed():
    text = (ROOT / "docs/train.md").read_text().partition("## Resuming")[2].partition("\n## ")[0]
    assert [key for key in MUST_MATCH if f"`{key}`" not in text] == []


# Commands


def options() -> dict[str, set[str]]:
    """The flags of each console script of the project."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found = {}
    for script, entry in scripts.items():
        app = import_module(entry.partition(":")[0]).app
        group = typer.main.get_command(app)
        commands = [group, *getattr(group, "commands", {}).values()]
        params = [param for command in commands for param in command.params]
        found[script] = {flag for param in params for flag in param.opts} | {"--help"}
    return found


FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=name_of)
def test_commands_and_flags_exist(page):
    known = options()
    text = page.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        for script, rest in re.findall(r"(?:^|[\s`#;&|])(llm-[a-z]+)(?=[\s`]|$)([^`#;&|]*)", line):
            assert script in known, line
            assert set(FLAG.findall(rest)) <= known[script], line
    every_flag = set().union(*known.values())
    for span in re.findall(r"`(--[^`]*)`", prose(page)):
        assert set(FLAG.findall(span)) <= every_flag, span


# Tables of keys


def documented(section: str) -> dict[str, tuple[str, str]]:
    """Key -> (default, the whole row) of the table under a heading of docs/train.md."""
    text = (ROOT / "docs/train.md").read_text()
    heading = "### Top" if section == "top" else f"### `{section}`"
    (body,) = re.findall(rf"^{re.escape(heading)}\n(.*?)^#", text, re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): (row[1].strip(), "|".join(row)) for row in rows}


def sections(config: type[Config], path: str = "") -> dict[str, type[Config]]:
    """Every section of a config by its dotted name, `top` first."""
    found = {path or "top": config}
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            found |= sections(field.annotation, f"{path}.{name}" if path else name)
    return found


SECTIONS = sections(TrainingConfig)


def agrees(cell: str, default: object) -> bool:
    """Whether a cell of the column `default` says what the config class says."""
    if isinstance(default, Config):
        return cell.startswith("[section](#")
    text = cell.strip("`")
    if isinstance(default, float):
        return math.isclose(float(Fraction(text)), default)
    return text == (default if isinstance(default, str) else json.dumps(default))


@pytest.mark.parametrize("section", SECTIONS)
def test_tables_list_every_key_with_its_default(section):
    fields = SECTIONS[section].model_fields
    rows = documented(section)
    assert rows.keys() == fields.keys()
    for key, field in fields.items():
        default, row = rows[key]
        if field.is_required():
            assert default == "", key
        else:
            assert agrees(default, field.default), key
        if typing.get_origin(field.annotation) is typing.Literal:
            for choice in typing.get_args(field.annotation):
                assert f"`{choice}`" in row, (key, choice)


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_every_kind_has_its_formula(section):
    kinds = typing.get_args(SECTIONS[section].model_fields["type"].annotation)
    text = (ROOT / "docs/train.md").read_text().partition("## What a step computes")[2]
    assert all(f"\n| `{kind}` | " in text for kind in kinds)


# Example configs


def num_parameters(path: Path) -> int:
    return sum(math.prod(entry.shape) for entry in table(load_config(path).model))


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_configs_size_is_the_one_that_is_stated(path):
    number = num_parameters(path)
    text = path.read_text()
    stated = re.findall(r"([\d.]+ [kMB]) parameters(?: \(([\d,]+)\))?", text)
    assert stated in ([(count(number), f"{number:,}")], [(count(number), "")])
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("|") and name_of(path) in line:
                assert f"| {count(number)} |" in line


def test_the_recipe_of_350_million_parameters(tmp_path):
    page = (ROOT / "docs/recipes.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "large.yaml"
    path.write_text(text.replace("configs/", f"{ROOT}/configs/"))
    cfg = load_config(path)
    assert f"{round(num_parameters(path) / 1e6)} M parameters" in page
    assert f"{cfg.tokens_per_step:,} tokens a step" in text
    assert cfg.tokens_per_step * cfg.num_steps == pytest.approx(20 * num_parameters(path), rel=0.1)


def test_the_configs_have_the_sizes_that_their_names_promise():
    sizes = {path.stem: num_parameters(path) for path in CONFIGS}
    assert sizes["small"] == pytest.approx(25e6, rel=0.02)
    assert sizes["medium"] == pytest.approx(120e6, rel=0.03)
    assert sizes["experiment_complex_attn"] == pytest.approx(sizes["small"], rel=0.03)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_the_arithmetic_in_a_configs_comments(path):
    """`# 262,144 tokens a step`, where a config says so."""
    cfg = load_config(path)
    for stated in re.findall(r"([\d,]+) tokens a step", path.read_text()):
        assert int(stated.replace(",", "")) == cfg.tokens_per_step
    for stated in re.findall(r"# ([\d,]+) windows", path.read_text()):
        assert int(stated.replace(",", "")) == cfg.eval_steps * cfg.batch_size
