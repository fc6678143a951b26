"""What leaves this folder: the sdist and the wheel, and the workflows that GitHub runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path, PurePosixPath

import pytest
import yaml
from tiny_runs import ROOT

import light_llm

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
NAMES = ("light_llm", "light_jax", "conversion")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with both, made as `make wheel` makes them, from a copy of what git knows."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    with tarfile.open(source / "tree.tar", "w") as tree:
        for name in filter(None, names.split("\0")):
            if (ROOT / name).exists() and not name.startswith("tests/reference/"):
                tree.add(ROOT / name, name)
    with tarfile.open(source / "tree.tar") as tree:
        tree.extractall(source / "tree", filter="data")
    command = [sys.executable, "-I", "-m", "build", "--no-isolation", "--outdir", out]
    done = subprocess.run(command, cwd=source / "tree", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    assert path.name == f"light_llm_jax-{light_llm.__version__}-py3-none-any.whl"
    return path


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_a_wheel_has_every_module_and_what_modules_read(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {str(path.relative_to(ROOT)) for n in NAMES for path in (ROOT / n).rglob("*.py")}
    wanted |= {f"{name}/py.typed" for name in NAMES}
    wanted |= {f"light_jax/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert names == wanted | {"light_jax/parallel/targets.json"}


def test_an_sdist_has_what_a_wheel_needs_and_no_tests(built, wheel):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = [PurePosixPath(member.name) for member in archive if member.isfile()]
    names = {str(path.relative_to(path.parts[0])) for path in files}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} <= names
    assert names >= {"README.md", "LICENSE", "pyproject.toml"}
    assert not {name.split("/")[0] for name in names} & {"tests", "benchmarks", "docs", "build"}


def test_the_metadata_says_what_pypi_shows(wheel):
    told = metadata(wheel)
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload(decode=True).decode().startswith("# light-llm for JAX\n")
    assert (told["License-Expression"], told["License-File"]) == ("MIT", "LICENSE")
    assert told["Author"] in (ROOT / "LICENSE").read_text()
    urls = dict(line.split(", ", 1) for line in told.get_all("Project-URL"))
    assert urls.keys() >= {"Repository", "Documentation", "Issues", "Changelog"}
    assert all(url.startswith(urls["Repository"]) for url in urls.values())


def test_the_classifiers_name_the_pythons_that_are_allowed():
    oldest, end = map(int, re.findall(r"3\.(\d+)", PROJECT["project"]["requires-python"]))
    told = [re.fullmatch(r".*Python :: 3\.(\d+)", c) for c in PROJECT["project"]["classifiers"]]
    assert [int(found[1]) for found in told if found] == list(range(oldest, end))


def test_an_installed_wheel_needs_nothing_of_this_folder(wheel, tmp_path):
    """In a fresh environment; the dependencies are those of this one."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")

    def said(*command: str | Path) -> str:
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    pip = (sys.executable, "-m", "pip", "-q", "--python", python)
    said(*pip, "install", "--no-index", "--no-deps", "--no-compile", wheel)
    own = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(own))
    scripts = tmp_path / "venv/bin"
    assert str(site) in said(python, "-c", "import light_jax; print(light_jax.__file__)")
    for script in PROJECT["project"]["scripts"]:
        assert f"Usage: {script}" in said(scripts / script, "--help")
    assert said(scripts / "llm-train", "--version").startswith(
        f"llm-train of light-llm-jax {light_llm.__version__}"
    )
    shipped = (ROOT / "configs/small.yaml").read_text().replace("configs/small.yaml", "my.yaml")
    assert said(scripts / "llm-train", "init", "small") == shipped
    code = "from light_jax.parallel.targets import known_names; print(*known_names())"
    assert "h100-8" in said(python, "-c", code)


# GitHub's workflows


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_that_exist_and_may_only_read(path):
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"] == {"contents": "read"}
    called = set()
    for job in flow["jobs"].values():
        assert job["timeout-minutes"] > 0
        assert "permissions" not in job
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
            called |= set(re.findall(r"\bmake ([a-z]+)", step.get("run", "")))
    assert called
    assert called <= make_targets()


def test_the_workflow_runs_what_check_runs_on_every_python():
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step.get("run") for job in flow["jobs"].values() for step in job["steps"]]
    (parts,) = re.findall(r"^check: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {f"make {part}" for part in parts.split()} <= set(steps)
    told = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if ":: 3." in c]
    assert flow["jobs"]["test"]["strategy"]["matrix"]["python"] == told
