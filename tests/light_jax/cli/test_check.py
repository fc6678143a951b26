"""`llm-train CONFIG --check` finds everything at once, compiles the step, and writes nothing."""

import importlib.util
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import in_process
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import ROOT, TINY, command, devices, write_config

import light_jax
from light_jax.cli.train import main
from light_jax.training import fit, memory
from light_jax.training.loop import run_config
from light_llm.errors import UserError
from light_llm.preprocess import PreprocessConfig, preprocess
from light_llm.tokenizer import train_char

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer.\n"
SMALL = {"num_layers": 1}
NO_DEVICE = "v0-1"
"""Devices that nobody knows: one finding more, and nothing is compiled."""
KEYS = {
    "ok",
    "findings",
    "devices",
    "memory",
    "attention",
    "collectives",
    "flops_per_step",
    "compile_seconds",
    "largest_batch_size",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def standing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything in a folder, and of the folder itself."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


def found(resume=None, devices=NO_DEVICE, **changes) -> list[tuple[str, str, str]]:
    """(level, key, message) of all findings but that of NO_DEVICE; nothing is written."""
    config = write_config(Path("c.yaml"), **changes)
    before = standing(Path.cwd())
    report = light_jax.check(config, resume, devices)
    assert standing(Path.cwd()) == before
    findings = [(each.level, each.key, each.message) for each in report.findings]
    return [each for each in findings if each[1] != "devices" or NO_DEVICE not in each[2]]


def has(findings, level, key, part) -> bool:
    return any((level, key) == each[:2] and part in each[2] for each in findings)


def shard(folder: str, ids=(1, 2, 3) * 40) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"tokens": [list(ids)]}), f"{folder}/s.parquet")


def bad_data() -> None:
    shard("ids", [1, 2, 131] * 40)
    shard("short", [1, 2, 3])
    shard("pages")
    for name in ("cut", "cut2"):
        shard(name)
        path = Path(name, "s.parquet")
        path.write_bytes(path.read_bytes()[:-9])
    path = Path("pages/s.parquet")
    data, chunk = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)


TRAIN, VAL = TINY["train_data"], TINY["val_data"]
FOUND = {
    # of every start
    "no data": ({"train_data": "none"}, "error", "train_data", "does not exist"),
    "no validation data": ({"val_data": "none"}, "error", "val_data", "does not exist"),
    "too short": ({"train_data": "short"}, "error", "train_data", "lower seq_len=16"),
    "damaged": ({"train_data": "cut"}, "error", "train_data", "the shard is truncated"),
    "an id": ({"train_data": "ids"}, "error", "train_data", "token id 131 is outside 0..130"),
    "a file": ({"checkpoint_dir": "c.yaml/x"}, "error", "checkpoint_dir", "is not a folder"),
    "weights": ({"init_from": "none"}, "error", "init_from", "there is no checkpoint 'none'"),
    "overlap": ({"train_data": [TRAIN, VAL]}, "warning", "val_data", "train_data overlap"),
    "warmup": (
        {"scheduler": {"warmup_steps": 9}},
        "warning",
        "scheduler.warmup_steps",
        "is more than num_steps=6",
    ),
    "epochs": ({"num_steps": 9000}, "warning", "num_steps", "is 63.6 epochs of train_data"),
    "positions": (
        {"model": {"positional": {"encoding": "learned"}}},
        "warning",
        "model.max_seq_len",
        "stay noise",
    ),
    # of a check alone
    "pages": ({"train_data": "pages"}, "error", "train_data", "pages/s.parquet: row group 0"),
    "saves": ({"save_every": 7}, "warning", "save_every", "lower save_every"),
    "evaluations": ({"eval_every": 7}, "warning", "eval_every", "lower eval_every"),
    "no tokenizer": (
        {"tokenizer_path": "none/tokenizer"},
        "warning",
        "tokenizer_path",
        "training does without it",
    ),
    "no manifest": ({}, "note", "train_data", "no manifest.json lists these shards"),
    "tokenizer unset": ({}, "note", "tokenizer_path", "--tokenizer PATH"),
    "epochs implied": ({}, "note", "num_steps", "are 0.04 epochs"),
}
OF_A_FILE = {
    "a warning of the file": (
        {"model": {"attention": {"window_size": 4}}},
        "warning",
        "model.attention.window_size",
        "has no effect",
    ),
    "an unknown key": ({"batchsize": 3}, "error", "batchsize", "did you mean 'batch_size'?"),
    "a value": ({"seq_len": "x"}, "error", "seq_len", "must be a whole number"),
    "a section's rule": (
        {"model": {"attention": {"num_kv_heads": 3}}},
        "error",
        "model.attention.num_kv_heads",
        "use one of 1, 2, 4",
    ),
    "a rule between sections": ({"seq_len": 64}, "error", "seq_len", "exceeds model.max_seq_len"),
    "a choice of types": ({"train_data": [["x"]]}, "error", "train_data", "must be"),
}


@pytest.mark.parametrize("case", FOUND | OF_A_FILE)
def test_each_is_found(here, case):
    changes, level, key, part = (FOUND | OF_A_FILE)[case]
    bad_data()
    findings = found(**changes)
    assert has(findings, level, key, part), findings
    others = [each for each in findings if each[0] == "error" and each[1] != key]
    assert others == []


def test_the_page_lists_each_kind():
    """By its key and level; what is wrong in the file itself has any of the file's keys."""
    text = (ROOT / "docs/check.md").read_text().partition("## What is checked")[2]
    rows = [row.split("|") for row in re.findall(r"^\|.+\|$", text, re.MULTILINE)]
    listed = {(key, row[3].strip(" *")) for row in rows for key in re.findall("`(.+?)`", row[1])}
    assert {(key, level) for _, level, key, _ in FOUND.values()} <= listed


def test_several_are_found_at_once(here):
    bad_data()
    findings = found(
        train_data=["cut", "none", "cut2"],
        val_data="short",
        init_from="none",
        checkpoint_dir="c.yaml",
        save_every=7,
        scheduler={"warmup_steps": 9},
    )
    errors = [each[1] for each in findings if each[0] == "error"]
    assert sorted(errors) == ["checkpoint_dir", "init_from", *["train_data"] * 3, "val_data"]
    for part in ("cut/s.parquet", "train_data='none'", "cut2/s.parquet"):
        assert has(findings, "error", "train_data", part)
    assert {each[1] for each in findings if each[0] == "warning"} == {
        "save_every",
        "scheduler.warmup_steps",
    }


def test_every_problem_of_a_file_is_a_finding(here):
    findings = found(seq_len="x", num_steps=0, model={"dropout": 2}, optimizer={"lr": -1})
    assert [each[:2] for each in findings] == [
        ("error", key) for key in ("model.dropout", "seq_len", "num_steps", "optimizer.lr")
    ]
    Path("c.yaml").write_text("a: [")
    (broken,) = light_jax.check("c.yaml", devices=NO_DEVICE).findings[1:]
    assert (broken.level, broken.key) == ("error", "config")
    (missing,) = light_jax.check("none.yaml", devices=NO_DEVICE).findings[1:]
    assert "there is no such config file" in missing.message


def test_an_unknown_key_hides_nothing(here):
    findings = found(lr=3, batch_size="abc", model={"d_modell": 3, "num_layers": 0})
    assert {each[1] for each in findings if each[0] == "error"} == {
        "lr",
        "batch_size",
        "model.d_modell",
        "model.num_layers",
    }


def test_a_platform_that_is_not_here_is_one_finding_more(here):
    config = write_config(here / "c.yaml", train_data="none")
    done = command(
        "llm-train", config, "--check", "--json", cwd=here, env={"JAX_PLATFORMS": "cuda"}
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    told = [each for each in json.loads(done.stdout)["findings"] if each["level"] == "error"]
    assert [each["key"] for each in told] == ["devices", "train_data"]
    assert "JAX_PLATFORMS='cuda' is not available here" in told[0]["message"]


def test_a_mesh_or_batch_that_the_devices_cannot_hold(here):
    findings = found(devices="here", mesh={"data": 3, "fsdp": 2})
    assert has(findings, "error", "mesh", "does not cover the 1 devices")
    assert has(findings, "error", "mesh", "use {data: 1, fsdp: 1, tensor: 1}")


def test_wandb_that_nobody_is_logged_in_to(here, monkeypatch, tmp_path_factory):
    """Its package keeps a log in the home folder, and nothing where the run would be."""
    home = str(tmp_path_factory.mktemp("home"))
    for name, value in {"WANDB_MODE": "online", "HOME": home, "NETRC": "none"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert has(found(use_wandb=True), "error", "use_wandb", "nobody is logged in")


def test_a_disk_that_is_too_small(here, monkeypatch):
    """The size of a checkpoint is that of its files; 2 of steps 3 and 6, best and final."""
    run_config(write_config(Path("c.yaml")))
    files = [path for path in Path("out").rglob("step0000006*/**/*") if path.is_file()]
    files += [Path("out/step0000006.safetensors")]
    real = sum(path.stat().st_size for path in files)
    from light_jax.config import load_config
    from light_jax.training.advice import bytes_of_tag

    each = bytes_of_tag(load_config("c.yaml"))
    assert 0.8 * real < each < real
    usage = namedtuple("usage", "total used free")
    for free, level in ((4 * each, None), (4 * each - 1, "error")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(free, 0, free))
        levels = [f[0] for f in found(checkpoint_dir="new") if f[1] == "disk"]
        assert levels == ([level] if level else [])


def test_a_resume_is_checked_too(here):
    run_config(write_config(Path("c.yaml"), num_steps=3))
    assert has(found(), "error", "checkpoint_dir", "continue that one with --resume auto")
    findings = found("auto", num_steps=9)
    assert not [each for each in findings if each[0] == "error"]
    assert has(findings, "note", "resume", " at step 3 of 9")
    assert has(findings, "note", "resume", "changed: num_steps: 3 -> 9")
    assert has(found("auto", num_steps=3), "note", "num_steps", "nothing is left to do")
    assert has(found("auto", batch_size=4), "error", "resume", "batch_size: 8 -> 4")
    missing = found("out/none")
    assert has(missing, "error", "resume", "there is no checkpoint")
    assert [each[1] for each in missing if each[0] == "error"] == ["resume"]
    weights = Path("out/final.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert has(found("out/final"), "error", "resume", "final.safetensors")


@pytest.fixture
def corpus(here):
    """data/train with its manifest, from a tokenizer of characters."""
    Path("text").mkdir()
    for number in range(40):
        Path(f"text/{number}.txt").write_text(f"{number} {TEXT}")
    options = {"tokenizer": "char", "val_fraction": 0.2, "workers": 1}
    preprocess(PreprocessConfig(input=("text",), output=Path("data"), **options))
    return {"train_data": "data/train", "val_data": "data/val", "model": {"vocab_size": ...}}


def test_the_tokenizer_is_compared_with_the_manifest(corpus):
    fine = found(**corpus, tokenizer_path="data/tokenizer")
    assert [each[:2] for each in fine] == [("note", "num_steps"), ("note", "model.vocab_size")]
    assert has(
        found(**corpus | {"model": {"vocab_size": 9}}), "error", "train_data", "outside 0..8"
    )
    larger = found(**corpus | {"model": {"vocab_size": 999}})
    assert has(larger, "warning", "model.vocab_size", "rows of the embedding are never trained")
    shutil.copytree("data/tokenizer", "other")
    with open("other/README", "w") as file:
        file.write("which changes no id")
    assert found(**corpus, tokenizer_path="other") == fine
    train_char(["ab"]).save("another")
    other = found(**corpus, tokenizer_path="another")
    assert has(other, "warning", "tokenizer_path", "is not the tokenizer that train_data")
    manifest = json.loads(Path("data/manifest.json").read_text())
    del manifest["crc32"]
    for end, part in ((None, "has no end-of-text token"), (5, "0 of "), ("x", "has no end-of")):
        manifest["tokenizer"]["eos_id"] = end
        Path("data/manifest.json").write_text(json.dumps(manifest))
        assert has(found(**corpus), "warning", "train_data", part)


def test_a_tokenizer_larger_than_the_model(corpus):
    """Whose shards hold small ids alone, so that only the manifest knows of the others."""
    manifest = json.loads(Path("data/manifest.json").read_text())
    size = manifest["tokenizer"]["vocab_size"]
    manifest["tokenizer"]["vocab_size"] = size + 5
    del manifest["crc32"]
    Path("data/manifest.json").write_text(json.dumps(manifest))
    findings = found(**corpus | {"model": {"vocab_size": size}})
    assert has(findings, "error", "model.vocab_size", f"set model.vocab_size to {size + 5} or more")


# The command


def test_a_run_that_would_run_is_one_json_object_and_nothing_is_written(here):
    config = write_config(here / "run/c.yaml", model=SMALL)
    before = standing(here)
    done = command("llm-train", config, "--check", "--json", cwd=here / "run")
    assert done.returncode == 0, done.stderr
    assert standing(here) == before
    assert not (here / "run/out").exists()
    report = json.loads(done.stdout)  # so it is one object and nothing else
    assert report.keys() == KEYS
    assert report["ok"] is True
    assert {each["level"] for each in report["findings"]} == {"note"}
    assert report["devices"] == {"kind": "cpu", "count": 1}
    memory = report["memory"]
    assert 0 < memory["temporaries"] <= memory["total"] <= memory["limit"]
    assert report["attention"] == "blocks"
    assert report["collectives"] == {}
    assert report["flops_per_step"] > 0
    assert report["compile_seconds"] > 0
    assert report["largest_batch_size"] >= 8


def test_a_run_that_would_not_is_told_in_one_go(here):
    """On four devices of a CPU; data that are missing do not keep the step from being compiled."""
    config = write_config(
        here / "c.yaml", train_data="none", init_from="none", save_every=9, model=SMALL
    )
    before = standing(here)
    done = command("llm-train", config, "--check", cwd=here, env=devices(4))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert standing(here) == before
    lines = done.stdout.splitlines()
    assert lines[0] == "errors"
    assert lines.index("errors") < lines.index("warning") < lines.index("note")
    starts = [line.split()[0] for line in lines]
    for part in ("devices", "memory", "attention", "collectives", "arithmetic", "compiled"):
        assert part in starts, done.stdout
    assert "all-reduce" in done.stdout
    assert lines[-1] == "would run   no: 2 errors"


def test_flags_that_do_not_go_together(here):
    write_config(here / "c.yaml")
    for args, part in (
        (["--json"], "--json belongs to --check"),
        (["--devices", "v5e-4"], "--devices belongs to --check"),
        (["--check", "--replay", "x"], "--check and --replay exclude each other"),
    ):
        done = in_process.call(main, "c.yaml", *args)
        assert done.exit_code == 2
        assert part in done.stderr
    done = in_process.call(main, "c.yaml", "--check", "--json", "--devices", "v5f-4")
    assert done.exit_code == 2
    (finding,) = [f for f in json.loads(done.stdout)["findings"] if f["level"] == "error"]
    assert finding["key"] == "devices"
    assert "v5e" in finding["message"]


def test_a_step_that_does_not_fit_is_an_error_with_the_words_of_a_start(here, monkeypatch):
    """On a device of 1 MiB, which holds the state and not the step."""
    config = write_config(here / "c.yaml", num_steps=1, scheduler={"warmup_steps": 1})
    run_config(config)

    def message(resume, **changes) -> str:
        findings = found(resume, devices="here", num_steps=2, **changes)
        (told,) = [each[2] for each in findings if each[:2] == ("error", "memory")]
        with pytest.raises(UserError) as refusal:
            run_config("c.yaml", resume)
        assert told == str(refusal.value)
        return told

    monkeypatch.setattr(memory, "memory_limit", lambda device: 2**20)
    said = message(None, checkpoint_dir="other")
    assert "the step takes 1.2 MiB per device where cpu holds 1.0 MiB: " in said
    assert "use `batch_size: 4, gradient_accumulation_steps: 2` (the same tokens" in said
    places = [said.index(each) for each in ("batch_size", "gradient_checkpointing", "mesh.fsdp")]
    assert places == sorted(places)
    said = message("auto")  # a resume keeps its batch and its model
    assert said.endswith("of temporaries; use mesh.fsdp over more hosts than this")
    monkeypatch.setattr(memory, "memory_limit", lambda device: 2**10)
    assert "the state (weights and optimizer) takes 399.0 KiB per device" in message("auto")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_step_is_compiled_for_tpus_that_are_not_here(here, monkeypatch):
    """Without the search for the largest batch, which compiles more of them."""
    monkeypatch.setattr(fit, "MORE_COMPILES", 0)
    model = {"num_layers": 1, "attention": {"dropout": 0.1}}
    write_config(here / "c.yaml", dtype="bfloat16", mesh={"data": 2, "fsdp": 2}, model=model)
    before = standing(here)
    report = light_jax.check("c.yaml", devices="v5e-4")
    assert report.ok, report
    assert standing(here) == before
    assert (report.devices.kind, report.devices.count) == ("TPU v5 lite", 4)
    assert 0 < report.memory.total < 15 * 2**30 < report.memory.limit
    assert report.attention == "blocks"
    (note,) = [each.message for each in report.of("note") if each.key == "attention"]
    assert "(attention.dropout is set)" in note
    assert "set model.attention.dropout to 0 for the fused kernel" in note
    assert report.collectives["all-gather"].bytes > 0
    assert report.largest_batch_size == 8
    write_config(here / "c.yaml", mesh={"fsdp": 3}, batch_size=6)
    report = light_jax.check("c.yaml", devices="v5e-4")
    (error,) = report.of("error")
    assert error.key == "mesh"
    assert "use {data: 1, fsdp: 4, tensor: 1} or {data: 2, fsdp: 2, tensor: 1}" in error.message
    assert report.memory is None
