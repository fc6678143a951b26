"""The house: what imports what, what imports nothing heavy, which files and folders there are."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("light_llm", "conversion", "light_jax")
PAGE = ROOT / "docs/architecture.md"
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# The order in which a batch travels; a file imports from its own row or from those above it.
# docs/architecture.md tells the same rows in the same order.
ORDER = [
    ("light_llm.lazy",),
    ("light_llm.errors", "light_llm.printing", "light_llm.bugs", "light_llm.exits"),
    ("light_llm.files",),
    (
        "light_llm.configtext",
        "light_llm.configsource",
        "light_llm.configfile",
        "light_llm.configcheck",
    ),
    ("light_llm.models",),
    ("conversion.config_json", "conversion.mapping", "conversion.families"),
    ("light_llm.tokenizer",),
    ("light_llm.preprocess",),
    ("light_llm.checkpoint",),
    ("light_llm.sampling",),
    ("light_llm.generate",),
    ("light_llm.text",),
    ("conversion.weights", "conversion.import_hf"),
    ("light_llm.hf", "light_llm.formats"),
    ("light_jax.othernames", "light_jax.sections", "light_jax.sources", "light_jax.config"),
    ("light_jax.models",),
    ("light_jax.generate",),
    ("light_jax.data",),
    ("light_jax.parallel",),
    ("light_jax.state",),
    ("light_jax.checkpoint",),
    ("light_jax.reporting",),
    ("light_jax.runs",),
    ("light_jax.training",),
    ("light_jax.torch_runs", "light_jax.parity", "light_jax.evaluation"),
    ("light_llm.cli", "light_jax.cli"),
]


# The one imports no framework; importing the other is what registers our class in transformers.
EAGER = ("light_llm.models.transformer", "light_llm.hf")


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere, even lazily or for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in modules()}


def stage(name: str) -> int:
    rows = [i for i, row in enumerate(ORDER) if any(f"{name}.".startswith(f"{at}.") for at in row)]
    assert len(rows) == 1, f"{name} has no place in the order of imports: add it"
    return rows[0]


def is_cli(name: str) -> bool:
    return ".cli." in f"{name}." or name.endswith(".__main__")


@pytest.mark.parametrize("name", [n for n in modules() if n not in PACKAGES and not is_cli(n)])
def test_imports_go_one_way(name):
    for imported in imports(modules()[name]) - set(PACKAGES):
        assert not is_cli(imported), f"{name} imports {imported}, a leaf"
        assert stage(imported) <= stage(name), f"{name} imports {imported}, which comes later"


def test_packages_import_nothing_of_their_own_eagerly():
    for name, path in modules().items():
        if path.name == "__init__.py" and name not in EAGER:
            for node in ast.parse(path.read_text()).body:
                own = isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES
                lazy = own and node.module == "light_llm.lazy"
                assert lazy or not own, f"{path} imports {getattr(node, 'module', '')}"


def test_pyproject_lists_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(
        n for n, path in modules().items() if path.name == "__init__.py"
    )


def test_the_page_tells_the_order_of_imports():
    section = PAGE.read_text().partition("## The rule of imports\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\d+\. (.+?): ", section, re.MULTILINE)
    assert [tuple(re.findall(r"`([\w.]+)`", row)) for row in rows] == ORDER


def test_the_page_has_every_file_in_a_table():
    """By its path, or by its name after a path of the same folder in the same row."""
    files = {str(path.relative_to(ROOT)) for path in modules().values()}
    told = set()
    for row in re.findall(r"^\|.+\|$", PAGE.read_text(), re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([\w./]+)`", row):
            if "/" in name:
                folder = name.rpartition("/")[0]
                assert name in files or (ROOT / name).is_dir(), f"{PAGE}: there is no {name}"
                told.add(name)
            else:
                told.add(f"{folder}/{name.removesuffix('.py')}.py")
    missing = {path for path in files - told if not path.endswith("__init__.py")}
    assert not missing, f"{PAGE} has no row for {sorted(missing)}"


def test_tests_stand_where_the_code_does():
    """Each folder has the name of a package or a module; trust holds what is promised of all, field
    what others reported of programs like this."""
    apart = {ROOT / "tests" / name for name in ("", "trust", "field")}
    for folder in {path.parent for path in TESTS} - apart:
        name = ".".join(folder.relative_to(ROOT / "tests").parts)
        assert name in modules(), f"{folder} is named after nothing"


def test_no_test_imports_another():
    names = {path.stem for path in TESTS if path.name.startswith("test_")} | {"conftest"}
    assert len(names) == 1 + sum(path.name.startswith("test_") for path in TESTS), "not unique"
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            shared = {part for name in imported for part in name.split(".")} & names
            assert not shared, f"{path} imports {shared}: what tests share stands in a helper"


def loaded_after(code: str) -> set[str]:
    """Top-level modules that are loaded when `code` has run in a fresh interpreter."""
    listing = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_training_imports_no_torch(tmp_path):
    from tiny_runs import write_config

    config = write_config(tmp_path / "c.yaml", num_steps=2, eval_every=2)
    code = (
        f"import os; os.chdir({str(tmp_path)!r})\n"
        f"from light_jax.training.loop import run_config\nassert run_config({str(config)!r}) == 0"
    )
    loaded = loaded_after(code)
    assert "jax" in loaded
    assert not loaded & {"torch", "transformers", "wandb", "datasets"}


def test_the_config_imports_neither_framework():
    code = "from light_llm.models.transformer import TransformerConfig; TransformerConfig()"
    assert not loaded_after(code) & {"torch", "jax", "flax", "numpy", "pyarrow"}
    assert not loaded_after("import light_jax.config") & {"torch", "jax", "flax", "pyarrow"}


def test_pytorch_use_needs_no_jax():
    code = (
        "from light_llm.models.transformer import Transformer, TransformerConfig\n"
        "import light_llm.generate, light_llm.checkpoint.layout, light_llm.tokenizer\n"
        "Transformer(TransformerConfig(vocab_size=8, d_model=16, num_layers=1))"
    )
    loaded = loaded_after(code)
    assert "torch" in loaded
    assert not loaded & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize(
    "script",
    [
        "light_jax.cli.convert",
        "light_jax.cli.train",
        "light_jax.cli.data",
        "light_jax.cli.parity",
        "light_jax.cli.eval",
        "light_jax.cli.runs",
        "light_llm.cli.run",
        "light_llm.cli.preprocess",
    ],
)
def test_help_is_instant(script):
    assert not loaded_after(f"import {script}") & {"torch", "jax", "pyarrow", "transformers"}
