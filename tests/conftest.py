"""The environment of all tests; their shared tools are in tiny_runs.py."""

import os
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from hypothesis import settings
from tiny_runs import REFERENCE

settings.register_profile("untimed", deadline=None)  # a busy machine is not a mistake
settings.load_profile("untimed")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Thousands of files are synced and deleted again, and a disk lets a test wait for each.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
    found = os.statvfs(MEMORY)  # a container's may be small, or run no programs
    if found.f_bavail * found.f_frsize > 4 << 30 and not found.f_flag & os.ST_NOEXEC:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
os.environ.pop("PYTHONUNBUFFERED", None)  # containers set it; then no output waits in a buffer
# The same tiny steps are compiled in many tests and processes: once is enough.
CACHE = Path(__file__).parents[1] / ".pytest_cache/jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Compiling takes most of the time, and most laws hold however well XLA optimizes.
FAST = "jax_disable_most_optimizations"
os.environ.setdefault(FAST.upper(), "1")
# MLIR for every fusion, and many modules of LLVM for a program, take three quarters of the time to
# compile programs as small as these. A process ends at a flag that its XLA does not know.
USUAL: dict[str, bool | int] = {"xla_cpu_parallel_codegen_split_count": 32}
FLAGS = " --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):
    USUAL["xla_cpu_use_fusion_emitters"] = True
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
if os.environ[FAST.upper()] != "0" and FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + FLAGS


@pytest.fixture(scope="module", autouse=True)
def _compilers_effort(request):
    """A module marked `compiled_fully`, and every process that it starts, compiles as a user does:
    for what compares bits, numbers of another trainer, memory or speed, and for what is read of a
    compiled program. The others compile with little optimization."""
    if request.node.get_closest_marker("compiled_fully") is None:
        yield
        return
    import jax

    before = os.environ[FAST.upper()] != "0"  # 0: the whole suite as a user compiles
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FAST.upper(), "0")
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "").replace(FLAGS, ""))
        _compile_as_usual(patch)
        jax.config.update(FAST, False)
        jax.clear_caches()  # they do not tell the two kinds apart
        yield
    jax.config.update(FAST, before)
    jax.clear_caches()


def _compile_as_usual(patch: pytest.MonkeyPatch) -> None:
    """XLA read the flags as this process started: its programs get the defaults, until undone."""
    from jax._src import compiler  # JAX has no public setting for all programs of a process

    make = compiler.get_compile_options

    def usual(*args, backend=None, **kwargs):
        options = make(*args, backend=backend, **kwargs)
        if backend is None or backend.platform == "cpu":
            own = dict(options.env_option_overrides)
            options.env_option_overrides = [*(USUAL | own).items()]
        return options

    patch.setattr(compiler, "get_compile_options", usual)


@pytest.fixture(autouse=True)
def _signals():
    """A test that changes how its process takes signals changes it for itself alone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


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
