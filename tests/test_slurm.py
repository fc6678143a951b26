"""deploy/slurm/train.sbatch, run on this machine: requeued, and continued exactly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from several import ended, several, training
from stand_ins import DEPLOY, program
from tiny_runs import BIN, assert_same_weights, metrics, write_config

SRUN = f"""#!{BIN}/python
# As srun: starts the tasks, and ends with the highest of their codes.
import os, subprocess, sys
command = [arg for arg in sys.argv[1:] if not arg.startswith(("--kill-on", "--wait"))]
step = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}}
tasks = [
    subprocess.Popen(
        command, env=os.environ | step | {{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}}
    )
    for n in range(int(os.environ["SLURM_NTASKS"]))
]
with open("tasks", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(code if code >= 0 else 128 - code for code in [task.wait() for task in tasks]))
"""


def job_number() -> int:
    """One whose port, as JAX chooses it, is free."""
    for number in range(os.getpid(), os.getpid() + 4096):
        with socket.socket() as probe:
            try:
                probe.bind(("", number % 4096 + 65535 - 4095))
            except OSError:
                continue
            return number
    raise AssertionError


class Slurm:
    """A job of two tasks on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, programs = folder, folder / "programs"
        folder.mkdir()
        program(programs, "srun", SRUN)
        program(programs, "squeue", "#!/bin/bash\necho ${STATE:-RUNNING}\n")
        program(programs, "scontrol", '#!/bin/bash\necho "$*" >> requeued\n')
        number = str(job_number())
        self.env = os.environ | {
            "PATH": f"{programs}:{BIN}:{os.environ['PATH']}",
            "SLURM_JOB_ID": number,
            "SLURM_NTASKS": "2",
        }
        self.requeue = f"requeue {number}\n"

    def start(self, config: Path, **env: str) -> subprocess.Popen[str]:
        (self.folder / "tasks").unlink(missing_ok=True)
        return subprocess.Popen(
            ["bash", DEPLOY / "slurm/train.sbatch", config.name],
            cwd=self.folder,
            env=self.env | env,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, script: subprocess.Popen[str], number: signal.Signals) -> int:
        """Signal the tasks and the script once some steps are done; the script's exit code."""
        lines = self.folder / "out/metrics.jsonl"
        until = time.monotonic() + 300
        while not (lines.exists() and lines.read_text().count("\n") > 3):
            assert script.poll() is None, script.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        for task in (self.folder / "tasks").read_text().split():
            os.kill(int(task), number)
        script.send_signal(number)
        script.communicate(timeout=300)
        return script.returncode

    @property
    def requeued(self) -> str:
        at = self.folder / "requeued"
        return at.read_text() if at.exists() else ""


def test_a_job_on_slurm_that_is_signalled_is_requeued_and_goes_on_exactly(tmp_path):
    changes = {"num_steps": 40, "val_data": ..., "save_every": 1000, "eval_every": 1000}
    slurm = Slurm(tmp_path / "job")
    config = write_config(slurm.folder / "c.yaml", **changes)
    assert slurm.end(slurm.start(config), signal.SIGTERM) == 143
    assert slurm.requeued == slurm.requeue
    stopped = metrics(slurm.folder / "out")[-1]["step"]
    assert 0 < stopped < 40
    again = slurm.start(config)
    assert again.communicate(timeout=300) is not None
    assert again.returncode == 0
    assert slurm.requeued == slurm.requeue  # it was not put into the queue once more
    whole = tmp_path / "whole"
    with several(training(write_config(whole / "c.yaml", **changes)), whole) as runs:
        codes, errors = ended(runs, within=300)
    assert codes == [0, 0], errors
    outs = [folder / "out" for folder in (slurm.folder, whole)]
    assert_same_weights(*(out / "final.safetensors" for out in outs))
    first, second = (metrics(out, timeless=True) for out in outs)
    assert first == second


@pytest.mark.parametrize("code, state", [(143, "CANCELLED"), (2, "RUNNING"), (0, "RUNNING")])
def test_a_job_that_was_cancelled_or_failed_is_not_requeued(tmp_path, code, state):
    slurm = Slurm(tmp_path / "job")
    program(slurm.folder / "programs", "llm-train", f"#!/bin/bash\nexit {code}\n")
    done = slurm.start(Path("c.yaml"), STATE=state)
    assert done.wait() == code
    assert slurm.requeued == ""
