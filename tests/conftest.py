"""The environment of all tests; their shared tools are in tiny_runs.py."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_runs import REFERENCE

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The same tiny steps are compiled in many tests and processes: once is enough.
CACHE = Path(__file__).parents[1] / ".pytest_cache/jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="module", autouse=True)
def _compilers_effort(request):
    """A module marked `compiled_fast`, and every process that it starts, compiles with little
    optimization: for laws of files, messages and exit codes, where compiling takes most of the
    time. What compares bits, numbers of another trainer, memory or speed is not marked."""
    if request.node.get_closest_marker("compiled_fast") is None:
        yield
        return
    import jax

    name = "jax_disable_most_optimizations"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "1")
        jax.config.update(name, True)
        yield
    jax.config.update(name, False)
    jax.clear_caches()  # the next module compiles as a user does


@pytest.fixture
def reference_run(tmp_path: Path):
    """A copy of one of the reference runs, set up to start from its initial weights."""

    def make(case: str) -> Path:
        folder = tmp_path / case
        shutil.copytree(REFERENCE / "training" / case, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config |= {"init_from": "init.safetensors", "checkpoint_dir": "out"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    return make
