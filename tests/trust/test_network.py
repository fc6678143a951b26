"""No command opens a socket unasked, and a coordinator listens where it is told."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from tiny_runs import BIN, write_config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listeners(port: int) -> set[str]:
    """The local addresses, in hexadecimal as /proc has them, that listen on a port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.rpartition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def test_the_coordinator_listens_on_the_interface_that_its_address_names(tmp_path):
    port = free_port()
    config = write_config(tmp_path / "c.yaml", num_steps=100_000, log_every=1000, val_data=...)
    env = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "1",
        "JAX_PROCESS_ID": "0",
    }
    run = subprocess.Popen(
        [BIN / "llm-train", config], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while not (found := listeners(port)) and time.monotonic() < end and run.poll() is None:
            time.sleep(0.05)
        # 127.0.0.1, as it is or mapped into IPv6
        assert found in ({"0100007F"}, {"0000000000000000FFFF00000100007F"})
    finally:
        run.kill()
        run.wait()


def test_an_address_of_another_machine_is_refused_with_the_variable_that_overrides(tmp_path):
    config = write_config(tmp_path / "c.yaml")
    env = os.environ | {
        "JAX_COORDINATOR_ADDRESS": "192.0.2.1:1234",  # of no machine (RFC 5737)
        "JAX_NUM_PROCESSES": "1",
        "JAX_PROCESS_ID": "0",
    }
    done = subprocess.run(
        [BIN / "llm-train", config], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "JAX_COORDINATOR_BIND_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr


def without_network() -> list[str]:
    """The command that runs another where there is no interface at all, or [] where it cannot."""
    if shutil.which("unshare") is None:
        return []
    prefix = ["unshare", "--map-root-user", "--net"]
    works = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if works else []


def test_the_commands_of_the_quickstart_need_no_network(tmp_path):
    """In a network namespace without interfaces a call would fail at once, and be seen."""
    prefix = without_network()
    if not prefix:
        pytest.skip("this machine allows no network namespace")
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / f"text/{number}.txt").write_text(f"the {number} quick brown foxes\n" * 40)
    config = write_config(
        tmp_path / "c.yaml",
        train_data="data/train",
        val_data="data/val",
        tokenizer_path="data/tokenizer",
        num_steps=2,
        model={"vocab_size": 300},
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    for command in (
        "llm-preprocess --input text --output data --vocab-size 300 --val-fraction 0.3",
        f"llm-train {config}",
        "llm-run --checkpoint out/final --prompt the --max-tokens 2",
        "llm-data stats data/train --no-png",
        "llm-parity out/final --length 8",
    ):
        name, *args = command.split()
        done = subprocess.run(
            [*prefix, BIN / name, *args], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
