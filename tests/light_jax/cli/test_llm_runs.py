"""llm-runs lists, compares and cleans what runs left; it deletes nothing that is not theirs."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from tiny_runs import contents, metrics, train_command, write_config

from light_jax.checkpoint import store

STEPS = {"num_steps": 8, "eval_every": 4, "save_every": 2, "keep_last_n": 4}


def llm_runs(*args, cwd):
    return subprocess.run(
        [sys.executable, "-c", "from light_jax.cli.runs import main; main()", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def listed(cwd):
    done = llm_runs(".", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs, with different learning rates and orders."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lr, order in (("one", 1e-3, "sequential"), ("two", 2e-3, "shuffled")):
        changes = {"checkpoint_dir": name, "optimizer": {"lr": lr}, "window_order": order}
        train_command(write_config(folder / f"{name}.yaml", **STEPS | changes))
    return folder


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


def test_the_listing_is_what_is_there(runs):
    first, second = listed(runs)
    assert (first["path"], second["path"]) == ("one", "two")
    assert (first["step"], first["num_steps"], first["finished"]) == (8, 8, True)
    losses = {x["step"]: x["val/loss"] for x in metrics(runs / "one") if "val/loss" in x}
    best = min(losses, key=losses.get)
    assert first["best"] == {"step": best, "val_loss": losses[best]}
    tags = {tag["name"]: tag for tag in first["tags"]}
    assert set(tags) == {"best", "final", *(f"step000000{n}" for n in (2, 4, 6, 8))}
    for tag in tags.values():
        assert tag["complete"]
        assert tag["resumable"]
        assert tag["val_loss"] == losses.get(tag["step"])
        assert abs(time.time() - tag["time"]) < 3600
    done = llm_runs(runs, cwd=runs)
    assert re.search(rf"^  best +{best} +{losses[best]:.4f} .* complete$", done.stdout, re.M)


def test_a_run_is_finished_if_its_final_is_of_its_last_step(runs):
    assert "step 8 of 8 · finished · " in llm_runs("one", cwd=runs).stdout
    with open(runs / "one/metrics.jsonl", "a") as file:
        file.write('{"step": 9, "train/loss": 1.0}\n')  # it goes on, with more steps
    (runs / "two/final.safetensors").unlink()
    assert [run["finished"] for run in listed(runs)] == [False, False]


def test_tags_of_older_versions_have_the_loss_of_the_log(runs):
    for path in runs.glob("*/*.config.json"):
        config = json.loads(path.read_text())
        del config["checkpoint"]["val_loss"], config["checkpoint"]["crc32"]
        path.write_text(json.dumps(config))
    assert [tag["val_loss"] for tag in listed(runs)[0]["tags"] if tag["name"] == "final"] == [
        metrics(runs / "one")[-1]["val/loss"]
    ]


def test_what_is_wrong_with_a_tag_is_said(runs):
    one = runs / "one"
    (one / "step0000002.safetensors").unlink()
    (one / "step0000004.config.json").unlink()
    (one / "step0000006.safetensors").write_bytes(b"short")
    (one / "final.config.json").write_text("{")
    (one / ".step0000010.writing").mkdir()
    tags = {tag["name"]: tag for tag in listed(runs)[0]["tags"]}
    assert tags["step0000002"]["problem"] == "incomplete: no step0000002.safetensors"
    assert tags["step0000004"]["problem"] == "incomplete: no step0000004.config.json"
    assert "has 5 of" in tags["step0000006"]["problem"]
    assert "not valid JSON" in tags["final"]["problem"]
    assert tags["step0000010"]["problem"] == "being written, or cut short"
    assert tags["best"]["complete"]


def test_differing_settings_and_curves_are_shown(runs):
    done = llm_runs("compare", "one", "two", "--html", "page.html", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^optimizer.lr +0.001 +0.002$", done.stdout, re.M)
    assert re.search(r"^window_order +sequential +shuffled$", done.stdout, re.M)
    assert "seed" not in done.stdout
    assert "checkpoint_dir" not in done.stdout
    for name, letter in (("one", "A"), ("two", "B")):
        loss = metrics(runs / name)[-1]["val/loss"]
        assert f" {letter} {name}  {loss:.4f}" in done.stdout
        assert f'<data value="{loss!r}">{loss:.4f}</data>' in (runs / "page.html").read_text()
    plot = done.stdout.partition("validation loss over steps")[2].partition("└")[0]
    assert "A" in plot
    assert "B" in plot
    assert llm_runs("compare", ".", "--html", "page.html", cwd=runs).returncode == 0


def test_runs_of_other_batch_sizes_are_compared_by_tokens(runs):
    path = runs / "two/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    doubled = [
        line | ({"tokens": 2 * line["tokens"]} if "tokens" in line else {}) for line in lines
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in doubled))
    assert "validation loss over tokens" in llm_runs("compare", ".", cwd=runs).stdout


def test_clean_shows_first_and_deletes_with_yes(runs):
    one = runs / "one"
    (one / ".step0000010.writing").mkdir()
    (one / ".metrics.jsonl.tmp").write_text("half")
    (one / "step0000004.safetensors").unlink()
    before = contents(runs)
    shown = llm_runs("clean", "one", "--keep", "1", cwd=runs)
    assert contents(runs) == before, "it only shows"
    named = re.findall(r"^would delete  one/(\S+)", shown.stdout, re.M)
    gone = {".step0000010.writing", ".metrics.jsonl.tmp", *(f"step000000{n}" for n in (2, 4, 6))}
    assert set(named) == gone
    done = llm_runs("clean", "one", "--keep", "1", "--yes", cwd=runs)
    assert done.returncode == 0, done.stderr
    lost = before.keys() - contents(runs).keys()
    assert {name.split("/")[1].partition(".s")[0].partition(".c")[0] for name in lost} <= gone | {
        ".metrics.jsonl.tmp",
        "",
    }
    assert {tag.prefix.name for tag in store.own_tags(one)} == {"best", "final", "step0000008"}
    assert "nothing to delete" in llm_runs("clean", ".", cwd=runs).stdout
    config = write_config(
        runs / "one.yaml", **STEPS | {"num_steps": 10}, checkpoint_dir="one", optimizer={"lr": 1e-3}
    )
    train_command(config, "--resume", "auto")


def test_what_is_foreign_is_not_deleted(runs):
    one = runs / "one"
    shutil.rmtree(one / "step0000002.state")
    (one / "step0000002.config.json").unlink()  # the weights alone name nobody
    (one / ".step0000099.writing").mkdir()
    (one / ".step0000099.writing/notes").write_text("mine")
    (one / "my.safetensors").write_text("mine")
    for ending in ("config.json", "safetensors"):
        shutil.copy(runs / f"two/final.{ending}", one / f"step0000001.{ending}")
    os.symlink(runs / "two/metrics.jsonl", one / ".metrics.jsonl.tmp")
    before = contents(runs)
    assert llm_runs("clean", ".", "--keep", "9", "--yes", cwd=runs).returncode == 0
    assert contents(runs) == before


def test_the_tag_that_a_resume_needs_stays(runs):
    one = runs / "one"
    tag = store.read_tag(one / "step0000002")
    store.write_start(one, store.Start(9, tag.run, "step0000002"))
    llm_runs("clean", "one", "--keep", "1", "--yes", cwd=runs)
    assert store.find("auto", one).prefix.name == "step0000002"


def test_a_run_that_is_writing_is_left_alone(runs):
    with open(runs / "one/.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = contents(runs)
        done = llm_runs("clean", "one", "--keep", "1", "--yes", cwd=runs)
        assert (done.returncode, contents(runs)) == (2, before)
        assert "is being written by another run" in done.stderr
    with open(runs / "two/.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = llm_runs("clean", ".", "--keep", "3", "--yes", cwd=runs)
        assert done.returncode == 2
        assert "deleted  one/step0000002" in done.stdout, "what went before is told"
        assert not (runs / "one/step0000002.safetensors").exists()
        assert (runs / "two/step0000002.safetensors").exists()


@pytest.mark.parametrize(
    "args, words",
    [
        (["nothing"], "there is no such folder"),
        (["one.yaml"], "is not a folder"),
        (["empty"], "no run is there or below"),
        (["compare", "one"], "name two or more"),
        (["clean", "one", "--keep", "0"], "--keep"),
        (["compare", "one", "two", "--html", "one.yaml"], "stays as it is"),
        (["compare", "one", "two", "--html", "no/such/folder.html"], "No such file or directory"),
        (["list", "--jsn"], "--jsn"),
    ],
)
def test_bad_input_is_one_message(runs, args, words):
    (runs / "empty").mkdir()
    before = contents(runs)
    done = llm_runs(*args, cwd=runs)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert contents(runs) == before


def test_hostile_files_are_passed_over(runs):
    one = runs / "one"
    (one / "metrics.jsonl").write_bytes(
        b'\xff\n[]\n{"step": -1}\n{"step": 2, "val/loss": "x"}\n{"st'
    )
    (one / "step0000004.config.json").write_text('{"checkpoint": {"step": "many"}}')
    os.unlink(one / "step0000006.config.json")
    os.mkfifo(one / "step0000006.config.json")
    (one / "\x1b[2J.config.json").write_text("{}")
    (one / "\x1b[2J.safetensors").write_text("")
    done = llm_runs(".", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert llm_runs("clean", ".", "--keep", "1", cwd=runs).returncode == 0
    assert llm_runs("compare", ".", cwd=runs).returncode == 0
    (one / "metrics.jsonl").unlink()
    os.mkfifo(one / "metrics.jsonl")
    done = llm_runs(".", cwd=runs)
    assert done.returncode == 2
    assert "is a FIFO" in done.stderr


def test_it_loads_no_framework(runs):
    code = (
        "import sys; sys.argv = ['llm-runs', 'compare', '.']\n"
        "from light_jax.cli.runs import main\n"
        "try: main()\n"
        "finally: print({'jax', 'torch', 'numpy'} & {n.split('.')[0] for n in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=runs, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr
