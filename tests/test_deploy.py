"""The files of deploy/: what they start exists, and what they promise of a run is so."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pages import fences
from stand_ins import DEPLOY, program
from tiny_runs import (
    BIN,
    ROOT,
    command,
    contents,
    metrics,
    train_command,
    write_config,
)

from light_jax.parallel.cluster import VARIABLES

SCRIPTS = sorted([*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch")])
MANIFESTS = sorted(DEPLOY.rglob("*.yaml"))
SCALE = ROOT / "docs/scale.md"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def documents(path: Path) -> dict[str, dict[str, Any]]:
    """The objects of a manifest by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(path.read_text())}


# What stands in the files


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_script_is_bash(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert path.read_text().startswith("#!/bin/bash\n")


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=name_of)
def test_the_docs_name_each_file_and_what_they_show_of_it_is_so(path):
    assert f"](../{name_of(path)})" in SCALE.read_text()
    shown = [text for _, text in fences(SCALE) if f"# sbatch {name_of(path)} " in text]
    assert shown == ([path.read_text()] if path.suffix == ".sbatch" else [])


def test_every_flag_that_is_given_to_llm_train_exists(tmp_path):
    known = command("llm-train", "--help", cwd=tmp_path).stdout
    text = "".join(path.read_text() for path in (*SCRIPTS, *MANIFESTS))
    lines = re.findall(r"(?:llm-train|bash worker\.sh)\b[^\n]*--[^\n]*", text)
    flags = {flag for line in lines for flag in re.findall(r"(?<![\w-])--[a-z-]+", line)}
    assert flags == {"--resume"}
    assert all(flag in known for flag in flags)


def test_the_job_gives_each_pod_what_joins_it_to_the_others():
    found = documents(DEPLOY / "kubernetes/job.yaml")
    job, service = found["Job"], found["Service"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    name = job["metadata"]["name"]
    assert set(VARIABLES) <= env.keys()
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(env["JAX_NUM_PROCESSES"])
    assert env["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-0.{pod['subdomain']}:")
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert (
        len(env["JAX_LOCAL_DEVICE_IDS"].split(","))
        == (container["resources"]["limits"]["nvidia.com/gpu"])
    )
    assert pod["terminationGracePeriodSeconds"] >= 300


def test_the_jobset_has_a_pod_for_each_host_of_its_slice():
    (replicated,) = documents(DEPLOY / "kubernetes/jobset.yaml")["JobSet"]["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"] == rows * columns // chips
    assert job["completionMode"] == "Indexed"


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_every_volume_that_is_mounted_is_there(path):
    job = next(each for kind, each in documents(path).items() if kind != "Service")
    if job["kind"] == "JobSet":
        job = job["spec"]["replicatedJobs"][0]["template"]
    pod = job["spec"]["template"]["spec"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


# Cloud TPU


class Metadata(http.server.BaseHTTPRequestHandler):
    values: ClassVar = {"agent-worker-number": "1", "worker-network-endpoints": ""}

    def do_GET(self) -> None:
        key = self.path.rpartition("/")[2]
        known = self.headers["Metadata-Flavor"] == "Google" and key in self.values
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(self.values.get(key, "").encode() if known else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="the script needs curl")
@pytest.mark.parametrize("hosts", ["a:1:10.0.0.5,b:2:10.0.0.6", "10.0.0.5,10.0.0.6"])
def test_a_host_of_a_tpu_slice_joins_by_what_the_metadata_server_says(tmp_path, monkeypatch, hosts):
    monkeypatch.setitem(Metadata.values, "worker-network-endpoints", hosts)
    told = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
    program(tmp_path, "llm-train", f"#!/bin/bash\nexec {BIN}/python -c '{told}' \"$@\"\n")
    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            ["bash", DEPLOY / "tpu/worker.sh", "my config.yaml", "--resume", "auto"],
            env=os.environ
            | {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
            | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    env, args = json.loads(done.stdout)
    assert [env[name] for name in VARIABLES] == ["10.0.0.5:8482", "2", "1"]
    assert args == ["my config.yaml", "--resume", "auto"]


def test_a_run_is_started_on_every_host_of_a_slice(tmp_path):
    program(tmp_path, "gcloud", '#!/bin/bash\nprintf "%s\\n" "$@" >> asked\necho >> asked\n')
    subprocess.run(
        [DEPLOY / "tpu/launch.sh", "my-slice", "us-east5-a", "/mnt/my runs/c.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    copied, started = (tmp_path / "asked").read_text().strip().split("\n\n")
    assert "--worker=all" in copied.split("\n")
    assert "--worker=all" in started.split("\n")
    assert r"bash worker.sh /mnt/my\ runs/c.yaml --resume auto" in started


# Checkpoints in a bucket

SYNC = f"""#!{BIN}/python
# As `aws s3 sync` and `gcloud storage rsync`: copies what is not excluded.
import fnmatch, os, re, shutil, sys
from pathlib import Path
args, excluded = sys.argv[1:], []
while "--exclude" in args:
    at = args.index("--exclude")
    excluded.append(fnmatch.translate(args[at + 1]))
    del args[at : at + 2]
excluded += [arg.partition("=")[2] for arg in args if arg.startswith("--exclude=")]
source, to = (Path(re.sub("^(s3|gs)://", "", arg)) for arg in args[-2:])
for path in sorted(source.rglob("*")):
    name = str(path.relative_to(source))
    if path.is_file() and not any(re.match(pattern, name) for pattern in excluded):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to / name)
        print("copied", name)
"""


def test_a_run_goes_on_from_what_was_copied_to_a_bucket(tmp_path):
    config = write_config(tmp_path / "c.yaml", num_steps=3)
    train_command(config)
    (tmp_path / "out/.step.writing").mkdir()
    (tmp_path / "out/.step.writing/x").write_bytes(b"x")
    env = os.environ | {"PATH": f"{tmp_path}/programs:{os.environ['PATH']}"}
    for tool, url in (("aws", "s3://bucket/run"), ("gcloud", "gs://other/run")):
        program(tmp_path / "programs", tool, SYNC)
        script = [DEPLOY / "sync.sh", "out", url, "0"]
        done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        names = [line.removeprefix("copied ") for line in done.stdout.splitlines()]
        assert names.index("final.config.json") > names.index("final.safetensors")
        assert not [name for name in names if name.startswith(".")]
    assert contents(tmp_path / "bucket/run") == contents(tmp_path / "other/run")
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(tmp_path / "bucket/run", tmp_path / "out")
    train_command(write_config(tmp_path / "c.yaml", num_steps=5), "--resume", "auto")
    assert [line["step"] for line in metrics(tmp_path / "out") if "train/loss" in line][-1] == 5


def test_the_copying_ends_with_a_last_copy_when_it_is_told_to(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_bytes(b"1")
    program(tmp_path / "programs", "aws", SYNC)
    env = os.environ | {"PATH": f"{tmp_path}/programs:{os.environ['PATH']}"}
    script = [DEPLOY / "sync.sh", "out", "s3://bucket", "600"]
    with subprocess.Popen(script, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert [run.stdout.readline() for _ in "12"] == ["copied a\n"] * 2
        (tmp_path / "out/b").write_bytes(b"2")
        time.sleep(0.5)
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=30)
    assert run.returncode == 0
    assert (tmp_path / "bucket/b").read_bytes() == b"2"


@pytest.mark.parametrize("args", [["out", "ftp://x"], ["gone", "s3://x"]])
def test_a_copy_to_nowhere_is_a_message(tmp_path, args):
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [DEPLOY / "sync.sh", *args], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sync.sh: ")
