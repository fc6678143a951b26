"""No command opens a socket unasked, and a coordinator listens only on its configured interface."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import BIN, write_config

from light_jax.parallel.address import bind_address
from light_llm.errors import UserError


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
        "JAX_COORDINATOR_ADDRESS": "192.0.2.1:1234",  # on no machine (RFC 5737)
        "JAX_NUM_PROCESSES": "1",
        "JAX_PROCESS_ID": "0",
    }
    done = subprocess.run(
        [BIN / "llm-train", config], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "JAX_COORDINATOR_BIND_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses."""

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple]:
        families = [socket.AF_INET6 if ":" in at else socket.AF_INET for at in addresses]
        return [
            (family, socket.SOCK_STREAM, 0, "", (at, port))
            for family, at in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_the_first_address_on_this_machine_is_taken(monkeypatch):
    resolving(monkeypatch, "2001:db8::1", "192.0.2.1", "127.0.0.1")
    assert bind_address("localhost:1234") == "127.0.0.1:1234"


def test_an_ipv6_address_stands_in_brackets():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    assert bind_address("[::1]:1234") == "[::1]:1234"


def test_a_name_that_is_loopback_on_this_machine_alone_is_refused(monkeypatch):
    """As Debian's /etc/hosts has it: the others would look for process 0 elsewhere."""
    resolving(monkeypatch, "127.0.1.1")
    with pytest.raises(UserError, match=r"node1:1234.*is 127\.0\.1\.1 on this machine"):
        bind_address("node1:1234")
    resolving(monkeypatch, "127.0.1.1", "0.0.0.0")
    assert bind_address("node1:1234") == "0.0.0.0:1234"
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.0.0.1:7")
    assert bind_address("node1:1234") == "10.0.0.1:7"


@pytest.mark.parametrize(
    "address", ["node1", "node1:", ":1234", "::1:1234", "node1:0", "node1:65536", "node1:x", ""]
)
def test_an_address_that_is_not_host_and_port_is_refused(address):
    with pytest.raises(UserError, match="must be HOST:PORT"):
        bind_address(address)


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_name_without_an_address_is_a_message(host):
    with pytest.raises(UserError, match="cannot listen there"):
        bind_address(f"{host}:1234")


def without_network() -> list[str]:
    """The command that runs another without any network interface, or [] if that is impossible."""
    if shutil.which("unshare") is None:
        return []
    prefix = ["unshare", "--map-root-user", "--net"]
    works = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if works else []


# One process for all commands, so that the frameworks are imported once.
QUICKSTART = """
import sys
from in_process import call
from light_jax.cli import data, parity, train
from light_llm.cli import preprocess, run

for main, command in (
    (preprocess.main, "--input text --output data --vocab-size 300 --val-fraction 0.3"),
    (train.main, "c.yaml"),
    (run.main, "--checkpoint out/final --prompt the --max-tokens 2"),
    (data.main, "stats data/train --no-png"),
    (parity.main, "out/final --length 8"),
):
    done = call(main, *command.split())
    if done.exit_code:
        sys.exit(f"{command}: {done.exit_code}\\n{done.output}")
"""


def test_the_commands_of_the_quickstart_need_no_network(tmp_path):
    """In a network namespace without interfaces any connection fails at once."""
    prefix = without_network()
    if not prefix:
        pytest.skip("this machine allows no network namespace")
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / f"text/{number}.txt").write_text(f"the {number} quick brown foxes\n" * 40)
    write_config(
        tmp_path / "c.yaml",
        train_data="data/train",
        val_data="data/val",
        tokenizer_path="data/tokenizer",
        num_steps=2,
        model={"vocab_size": 300},
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [*prefix, sys.executable, "-c", QUICKSTART],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
