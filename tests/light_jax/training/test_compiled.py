"""The steps are compiled before anything is allocated, and once: a second start finds them."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_runs import BIN, command, write_config

from light_jax.config import load_config
from light_jax.parallel import cache
from light_jax.state import bytes_per_device
from light_jax.training.compiled import GPU_OPTIONS, compile_steps, compiler_options
from light_jax.training.loop import run_config
from light_jax.training.memory import Room, StepMemory, check_step, memory_of_refused
from light_jax.training.run import prepare
from light_llm.errors import UserError

# What a step takes here is far above the memory of any machine; XLA only plans it.
ENORMOUS = 2**24
SMALL = {"num_layers": 1, "d_model": 16}


def test_a_step_that_does_not_fit_ends_with_sizes_and_remedies(tmp_path):
    """Each remedy with its values; nothing is written, and no memory is taken."""
    config = write_config(tmp_path / "c.yaml", batch_size=ENORMOUS, val_data=..., model=SMALL)
    done = command("llm-train", config, cwd=tmp_path)
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert re.match(
        r"llm-train: the step takes [\d,.]+ GiB per device where cpu holds [\d.]+ GiB: "
        r"[\d.]+ GiB of arguments \(state and tokens\) and [\d,.]+ GiB of temporaries; use "
        r"`batch_size: \d+, gradient_accumulation_steps: \d+` \(the same tokens per step\), or "
        r"`model.gradient_checkpointing: true`, or mesh.fsdp over more hosts than this$",
        message,
    )
    assert "Traceback" not in done.stderr
    size, accum = map(int, re.findall(r"(?:batch_size|accumulation_steps): (\d+)", message))
    assert size * accum == ENORMOUS
    assert sorted(tmp_path.iterdir()) == [config]
    changes = {"batch_size": size, "gradient_accumulation_steps": accum, "model": SMALL}
    run = prepare(load_config(write_config(config, val_data=..., **changes)), None)
    compile_steps(run)  # what was advised fits


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return prepare(load_config(write_config(tmp_path / "c.yaml", batch_size=48)), None)


def check(run, memory: StepMemory, limit: int) -> None:
    resuming = run.resumed is not None
    check_step(run.cfg, run.mesh, memory, Room(limit, "it holds"), resuming=resuming)


def test_the_largest_batch_that_fits_is_advised(run):
    """9 bytes of arguments, 3 more for the sum of the gradients, 44 for the 48 rows."""
    for limit, advice in {
        34: "batch_size: 24, gradient_accumulation_steps: 2",
        29: "batch_size: 16, gradient_accumulation_steps: 3",
        12: "batch_size: 1, gradient_accumulation_steps: 48",
        1: "batch_size: 1, gradient_accumulation_steps: 48",  # the others must help
    }.items():
        with pytest.raises(UserError, match=advice):
            check(run, StepMemory(9, 44), limit)
    check(run, StepMemory(9, 44), 53)


@pytest.mark.parametrize(
    "reason, told",
    [
        ("Used 26.60G of 15.75G hbm. Exceeded by 10.85G.", "takes 26.6 GiB per device where"),
        (
            "total memory required for HLO temporaries (39.41G) exceeds",
            "takes 39.4 GiB per device where",
        ),
        ("Out of memory", "takes more memory where it holds 53 B"),
        ("Used 20.50M of 16.00M vmem.", "takes more memory where it holds 53 B"),
    ],
)
def test_a_compilers_refusal_says_what_it_takes(run, reason, told):
    """As libtpu words it, in two ways; both sizes are of all that the program takes.

    Other memory than hbm does not count.
    """
    refused = memory_of_refused(f"RESOURCE_EXHAUSTED: {reason}", run.cfg, run.state, run.mesh)
    tokens = 4 * run.cfg.batch_size * (run.cfg.seq_len + 1)
    assert refused.arguments == bytes_per_device(run.state) + tokens
    with pytest.raises(UserError, match="the compiler refuses it; use `batch_size: ") as refusal:
        check(run, refused, 53)
    assert told in str(refusal.value)


def test_a_resumed_run_is_advised_only_what_it_may_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_config(write_config(tmp_path / "c.yaml", num_steps=1, val_data=...)) == 0
    cfg = load_config(write_config(tmp_path / "c.yaml", num_steps=2, val_data=...))
    with pytest.raises(UserError) as refusal:
        check(prepare(cfg, "auto"), StepMemory(9, 44), 1)
    assert str(refusal.value).endswith("of temporaries; use mesh.fsdp over more hosts than this")


def test_a_resume_with_nothing_to_do_compiles_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", num_steps=1, val_data=...)
    assert run_config(config) == 0
    assert "compiling…\ncompiled    " in capsys.readouterr().err
    assert run_config(config, "auto") == 0
    said = capsys.readouterr().err
    assert "nothing to do" in said
    assert "compil" not in said


# The cache of compiled programs. A threshold of 0 s, so that a tiny model can be told in seconds.


@pytest.fixture
def start(tmp_path):
    """start(*flags, **environment) -> what a new `llm-train` says, which must succeed."""
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    kept |= {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    sober = {"num_steps": 1, "scheduler": {"warmup_steps": 1}}  # nothing to warn of
    config = write_config(tmp_path / "c.yaml", **sober, val_data=..., model=SMALL)

    def run(*flags: str, **environment: str) -> str:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        done = subprocess.run(
            [BIN / "llm-train", config, *flags],
            cwd=tmp_path,
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    return run


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*-cache")}


def test_a_second_start_finds_what_the_first_compiled(tmp_path, start):
    """The folders are private, and a program whose writing was cut short is compiled again."""
    folder = tmp_path / "xdg/light-llm/jax"
    assert "(from the cache)" not in start()
    programs = kept(folder)
    for path in (folder, folder.parent, *folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (cut,) = (path for path in folder.rglob("*-cache") if "train_step" in path.name)
    cut.write_bytes(cut.read_bytes()[:100])
    cut.with_name(cut.name.removesuffix("cache") + "atime").unlink()

    said = start()
    assert "(from the cache)" not in said
    assert "warning" not in said
    assert cut.stat().st_size > 100

    assert re.search(r"compiled    [\d.]+ s \(from the cache\)", start())
    assert kept(folder) == programs


def test_a_start_finds_what_a_check_compiled(start):
    assert "compiling for here, batch_size 8" in start("--check")
    assert re.search(r"compiled    [\d.]+ s \(from the cache\)", start())


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """The setting that names the folder, as it is in a new process; undone in the end."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", cache.THRESHOLD)
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("unset")
def test_it_can_be_turned_off_and_a_folder_of_ones_own_is_left_alone(tmp_path, monkeypatch):
    for name, value in (
        ("LIGHT_LLM_COMPILATION_CACHE", "off"),
        ("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own")),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            cache.keep_compiled()
        assert jax.config.jax_compilation_cache_dir is None
        assert not (tmp_path / "xdg").exists()
    monkeypatch.setenv("LIGHT_LLM_COMPILATION_CACHE", "no")
    with pytest.raises(UserError, match="LIGHT_LLM_COMPILATION_CACHE='no' must be on or off"):
        cache.keep_compiled()


def others_can_write(folder: Path) -> None:
    folder.chmod(0o770)


def a_link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def a_file(folder: Path) -> None:
    """A home that cannot be written: no folder can be made in it."""
    folder.rmdir()
    folder.touch()


def read_only(folder: Path) -> None:
    folder.chmod(0o500)


def another_users(folder: Path) -> None:
    os.chown(folder, 12345, -1)


def below_a_folder_of_all(folder: Path) -> None:
    folder.parent.chmod(0o777)


UNUSABLE = {
    others_can_write: "others can write to it",
    a_link: "is not a folder",
    a_file: "File exists",
    read_only: "Permission denied",
    another_users: "belongs to another user",
    below_a_folder_of_all: "others can write to it",
}


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("spoil", UNUSABLE, ids=lambda spoil: spoil.__name__)
def test_a_folder_that_others_could_have_filled_is_not_used(tmp_path, capsys, spoil):
    """One note, and the run goes on without."""
    is_root = os.geteuid() == 0
    if is_root == (spoil is read_only) or (not is_root and spoil is another_users):
        pytest.skip("root may write everywhere, others may give nothing away")
    folder = tmp_path / "xdg/light-llm"
    folder.mkdir(parents=True, mode=0o700)
    spoil(folder)
    cache.keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    note = capsys.readouterr().err
    assert note.startswith(f"note: compiled programs are not kept: {tmp_path / 'xdg'}")
    assert UNUSABLE[spoil] in note
    assert note.count("\n") == 1
    assert not list(tmp_path.rglob("jax"))


def test_a_home_that_cannot_be_written_stops_no_run(start):
    said = start(XDG_CACHE_HOME="/proc/none")
    assert "note: compiled programs are not kept: /proc/none" in said
    assert "done        the model is" in said


GONE = """
import shutil, sys, jax
from light_jax.parallel.cache import keep_compiled
keep_compiled()
shutil.rmtree(sys.argv[1])
open(sys.argv[1], "w")
print(jax.jit(lambda x: x + 1)(1))
"""


def test_a_folder_that_goes_during_a_run_stops_none(tmp_path):
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    del env["JAX_COMPILATION_CACHE_DIR"]
    code = [sys.executable, "-c", GONE, str(tmp_path / "light-llm")]
    done = subprocess.run(code, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2\n", done.stderr
    assert "Traceback" not in done.stderr


def mesh_of(platform, count):
    """What is asked of a mesh, for devices that are not here."""
    device = SimpleNamespace(platform=platform)
    return SimpleNamespace(size=count, devices=np.array([device] * count, dtype=object))


@pytest.mark.parametrize(
    "platform, count, version, expected",
    [
        ("gpu", 8, (0, 10, 2), GPU_OPTIONS),
        ("gpu", 8, (0, 12, 0), {}),
        ("gpu", 1, (0, 10, 2), {}),
        ("tpu", 8, (0, 10, 2), {}),
        ("cpu", 8, (0, 10, 2), {}),
    ],
)
def test_xla_has_options_on_several_gpus_alone(monkeypatch, platform, count, version, expected):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(jax, "__version_info__", version)
    assert compiler_options(mesh_of(platform, count)) == expected


@pytest.mark.parametrize("in_file", [False, True])
def test_an_option_that_the_user_names_is_the_users(monkeypatch, tmp_path, in_file):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    for name in GPU_OPTIONS:
        flags = f"--xla_dump_to=/nowhere  --{name}=false"
        (tmp_path / "flags").write_text(flags)
        monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags") if in_file else flags)
        assert name not in compiler_options(mesh_of("gpu", 8))
        monkeypatch.setenv("XLA_FLAGS", f"--{name}_of_another=1")
        assert compiler_options(mesh_of("gpu", 8)) == GPU_OPTIONS
