"""SIGKILL at random moments of a running llm-train, until it has ended: again and again.

    python tests/light_jax/checkpoint/kill_sweep.py --kills 500

After each kill every tag that is there must be whole, before any recovery; the next start must
resume; and the run that gets through must end with the files of one that nobody interrupted. Half
of the kills fall anywhere between start and end, the other half into a save. The processes are
forks of one that has imported JAX but not used it, so that most of the time goes into what is to be
interrupted; `--exec` starts each as a command of its own.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_runs import BIN, metrics, write_config  # noqa: E402

from light_llm.checkpoint import digests, layout, reading  # noqa: E402

CHANGES = {
    "num_steps": 12,
    "save_every": 2,
    "eval_every": 4,
    "keep_last_n": 2,
    "num_workers": 1,
    "ema_decay": 0.9,
    "model": {"num_layers": 1, "dropout": 0.1},
}


class Process:
    """llm-train CONFIG --resume auto in its folder; a fork, or a command of its own."""

    def __init__(self, config: Path, fork: bool) -> None:
        args = ["llm-train", config.name, "--resume", "auto"]
        self.log = config.parent / "stderr"
        if fork:
            self.pid = os.fork()
            if self.pid == 0:
                _become(args, config.parent, self.log)
        else:
            with self.log.open("wb") as log:
                self.pid = subprocess.Popen(
                    [BIN / args[0], *args[1:]], cwd=config.parent, stderr=log
                ).pid

    def ended(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return None if pid == 0 else os.waitstatus_to_exitcode(status)

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _become(args: list[str], folder: Path, log: Path) -> None:
    from light_jax.cli.train import main

    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        os.chdir(folder)
        sys.argv = args
        main()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(1)


def phase(out: Path, since: float) -> str:
    """What a process that started then is at, by the traces that it has left."""
    fresh = set()
    for path in out.glob("*") if out.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # moved meanwhile
            if path.lstat().st_ctime >= since:
                fresh.add(path.suffix)
    if ".committed" in fresh:
        return "publishing"
    if ".writing" in fresh:
        return "writing"
    return "training" if ".jsonl" in fresh else "starting"


def sweep(folder: Path, kills: int, seed: int, fork: bool = True) -> Iterator[str]:
    """Kill `kills` times; yields the phase that each kill fell into.

    Raises:
        AssertionError: a law is broken.
    """
    rng = random.Random(seed)
    whole = write_config(folder / "whole/c.yaml", **CHANGES)
    duration = 0.0
    for _ in range(2):  # the first compiles
        shutil.rmtree(whole.parent / "out", ignore_errors=True)
        start, process = time.monotonic(), Process(whole, fork)
        while (code := process.ended()) is None:
            time.sleep(0.005)
        assert code == 0, process.log.read_text()
        duration = time.monotonic() - start
    config = write_config(folder / "killed/c.yaml", **CHANGES)
    out, done = config.parent / "out", 0
    while done < kills:
        start, clock = time.time(), time.monotonic()
        process = Process(config, fork)
        in_a_save, delay = rng.random() < 0.5, rng.uniform(0, duration)
        while (code := process.ended()) is None:
            late = time.monotonic() - clock > (delay / 2 if in_a_save else delay)
            if late and (not in_a_save or phase(out, start) in ("writing", "publishing")):
                time.sleep(rng.uniform(0, 0.06) if in_a_save else 0)
                break
            time.sleep(0.001)
        if code is None:
            code, where = process.kill(), phase(out, start)
        if code == -signal.SIGKILL:
            done += 1
            for tag in layout.tags(out):
                digests.verify(reading.read_checkpoint(out / tag))
            yield where
        else:
            assert code == 0, process.log.read_text()
            _compare(whole.parent / "out", out)
            shutil.rmtree(out)
    if out.exists():
        process = Process(config, fork)
        while (code := process.ended()) is None:
            time.sleep(0.01)
        assert code == 0, process.log.read_text()
        _compare(whole.parent / "out", out)


def _compare(whole: Path, killed: Path) -> None:
    """All that a run leaves behind; killed at its end, it may not have deleted an old tag yet."""
    assert set(layout.tags(killed)) >= set(layout.tags(whole))
    for tag in layout.tags(whole):
        for name in (f"{tag}.safetensors", f"{tag}.ema.safetensors"):
            assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
        expected = reading.read_checkpoint(whole / tag)
        found = reading.read_checkpoint(killed / tag)
        assert expected.record.step == found.record.step
        digests.verify(found)
    assert metrics(killed, timeless=True) == metrics(whole, timeless=True)
    assert not list(killed.glob(".*.writing")) + list(killed.glob(".*.committed"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exec", action="store_true")
    args = parser.parse_args()
    import light_jax.training.loop  # noqa: F401  # what the forks need not import again

    phases: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for where in sweep(Path(name), args.kills, args.seed, fork=not args.exec):
            phases[where] += 1
            if phases.total() % 10 == 0:
                print(f"{phases.total()} kills in {time.monotonic() - start:.0f} s: {dict(phases)}")
                sys.stdout.flush()
    print(f"{phases.total()} kills, every run ended with the weights of the uninterrupted one")


if __name__ == "__main__":
    main()
