"""The project installed into fresh environments, from the oldest to the newest supported.

    python tests/versions.py                              # all of them: `make versions`
    python tests/versions.py --only '3.12-*' --no-torch
    python tests/versions.py --list                       # their names
    python tests/versions.py --table                      # of docs/versions.md, from the records

Each environment is made by uv in build/versions/NAME: the wheel of this tree, the extras that the
tests need, and every dependency at the lowest or at the highest version that pyproject.toml allows.
There the commands start and SELECTION passes, or the environment fails; its record, a JSON file, is
kept. It takes minutes an environment. PyTorch is at one version everywhere: its builds are large.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build/versions"
TORCH = "torch==2.13.0"
EXTRAS = ("dev", "plot", "tensorboard", "gguf", "datasets")
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pyarrow", "pydantic", "transformers")

# What a run needs, and then what needs PyTorch.
SELECTION = (
    "tests/light_jax/test_config.py",
    "tests/light_jax/cli/test_train_config.py",
    "tests/light_jax/data/test_stream.py",
    "tests/light_jax/training/test_step.py",
    "tests/light_jax/training/test_waiting.py::test_a_run_imports_nothing_that_it_was_not_asked_for",
    "tests/light_jax/reporting/test_trackers.py",
)
WITH_TORCH = (
    "tests/conversion/test_conversion.py",
    "tests/light_jax/torch_runs/test_bridge.py",
    "tests/light_llm/hf/test_export.py",
    "tests/light_llm/formats/test_gguf.py",
    "tests/light_llm/formats/test_onnx.py",
)


@dataclass(frozen=True)
class Environment:
    """A Python and a choice of versions; `also` narrows the ranges of pyproject.toml."""

    python: str
    choice: str
    resolution: str
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.python}-{self.choice}"

    @property
    def folder(self) -> Path:
        return WORK / self.name

    @property
    def record(self) -> Path:
        return WORK / f"{self.name}.json"


ENVIRONMENTS = (
    *(Environment(python, "lowest", "lowest-direct") for python in ("3.11", "3.12", "3.13")),
    Environment("3.12", "jax-0.11", "highest", ("jax==0.11.*", "jaxlib==0.11.*")),
    *(Environment(python, "newest", "highest") for python in ("3.11", "3.12", "3.13")),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="a name or pattern")
    parser.add_argument("--no-torch", action="store_true", help="what trains without PyTorch")
    parser.add_argument(
        "--torch-from", type=Path, metavar="SITE_PACKAGES", help="link PyTorch from there"
    )
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--list", action="store_true", help="the names, and no more")
    parser.add_argument("--table", action="store_true", help="the table of the records")
    parser.add_argument("pytest", nargs="*", help="after --: what to give to pytest")
    return parser.parse_args()


def uv() -> str:
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    return found or sys.exit("versions: uv makes the environments: pip install uv")


def interpreter(python: str) -> str:
    """pyenv's newest Python of a version, else what uv finds under that name."""
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    own = list(root.glob(f"versions/{python}.*/bin/python"))
    return str(max(own, key=lambda path: int(path.parts[-3].split(".")[2]))) if own else python


def make(env: Environment, wheel: Path, args: argparse.Namespace) -> None:
    """Install the wheel into a new environment, and before it what pyproject.toml asks for: as
    dependencies of the wheel they would not be direct ones, which alone are kept low."""
    shutil.rmtree(env.folder, ignore_errors=True)
    run(uv(), "venv", "-q", "--no-project", "--python", interpreter(env.python), env.folder)
    extras, more = list(EXTRAS), list(env.also)
    if args.torch_from:
        more += ["sympy>=1.13", "networkx>=3", "jinja2>=3.1", "fsspec>=2024"]
    elif not args.no_torch:
        extras += ["torch"]
    if not args.no_torch:
        extras += ["onnx"]
    pin = WORK / "torch.txt"
    pin.write_text(TORCH + "\n")
    install = (uv(), "pip", "install", "-q", "--python", env.folder / "bin/python")
    run(
        *(*install, "--resolution", env.resolution, "--constraint", pin),
        "--only-binary=:all:",
        *("-r", ROOT / "pyproject.toml", *(f"--extra={extra}" for extra in extras), *more),
    )
    run(*install, "--no-deps", wheel)
    if args.torch_from:
        (site,) = env.folder.glob("lib/python*/site-packages")
        for name in ("torch", "torchgen", "functorch", "nvidia", "triton", "torch-*.dist-info"):
            for path in args.torch_from.glob(name):
                (site / path.name).symlink_to(path)


def check(env: Environment, args: argparse.Namespace) -> bool:
    """Whether the installed commands start, and the tests pass."""
    for command in (("--help",), ("--version",), ("init",)):
        run(env.folder / "bin/llm-train", *command, cwd=WORK, stdout=subprocess.DEVNULL)
    chosen = SELECTION + (() if args.no_torch else WITH_TORCH)
    flags = ("-q", "-p", "no:cacheprovider", "--tb=short", *args.pytest)
    tested = subprocess.run(
        [env.folder / "bin/python", "-m", "pytest", *flags, *chosen],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    (WORK / f"{env.name}.log").write_text(tested.stdout)
    print("\n".join(tested.stdout.splitlines()[-15:]), flush=True)
    return tested.returncode == 0


def run(*command: object, **options: object) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def versions(env: Environment) -> dict[str, str]:
    code = (
        "import json, platform, importlib.metadata as m; print(json.dumps({'python': "
        "platform.python_version()} | {d.name.lower(): d.version for d in m.distributions()}))"
    )
    told = subprocess.run(
        [env.folder / "bin/python", "-I", "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout)


def attempt(env: Environment, wheel: Path, args: argparse.Namespace) -> bool:
    """Make and check one environment; True if all passed. Its record says so."""
    print(f"== {env.name}", flush=True)
    began, passed, found = time.time(), False, {}
    try:
        make(env, wheel, args)
        found = versions(env)
        passed = check(env, args)
    except subprocess.CalledProcessError as error:
        print(f"{env.name}: {error}", flush=True)
    record = {
        "name": env.name,
        "passed": passed,
        "torch": not args.no_torch,
        "seconds": round(time.time() - began),
        "versions": found,
    }
    env.record.write_text(json.dumps(record, indent=1))
    if not args.keep:
        shutil.rmtree(env.folder, ignore_errors=True)
    return passed


def table() -> str:
    """The records as a table of Markdown, in the order of ENVIRONMENTS."""
    lines = ["| environment | Python | " + " | ".join(SHOWN) + " | PyTorch | result |"]
    lines.append("|---" * (len(SHOWN) + 4) + "|")
    for env in ENVIRONMENTS:
        if env.record.is_file():
            record = json.loads(env.record.read_text())
            found = record["versions"]
            torch = found.get("torch", "–") if record["torch"] else "–"
            cells = [env.name, found.get("python", "–"), *(found.get(n, "–") for n in SHOWN)]
            cells += [re.sub(r"\+.*", "", torch), "passes" if record["passed"] else "fails"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    args = parse()
    wanted = args.only or ["*"]
    chosen = [e for e in ENVIRONMENTS if any(fnmatch.fnmatch(e.name, w) for w in wanted)]
    if args.list:
        print(*(env.name for env in chosen), sep="\n")
        return 0
    if args.table:
        print(table())
        return 0
    if not chosen:
        sys.exit(f"versions: {' '.join(wanted)} is no environment; see --list")
    WORK.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(WORK / "dist", ignore_errors=True)
    run(uv(), "build", "-q", "--wheel", "--out-dir", WORK / "dist", ROOT)
    (wheel,) = (WORK / "dist").glob("*.whl")
    failed = [env.name for env in chosen if not attempt(env, wheel, args)]
    print(table())
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
