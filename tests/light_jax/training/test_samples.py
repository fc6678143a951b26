"""sample_prompts: text that the model writes while it is trained."""

import json
import re

import pytest
from tiny_runs import command, devices, start_processes, write_config

from light_jax.training.loop import run_config
from light_llm.errors import UserError
from light_llm.tokenizer import train_char

PROMPTS = ["the cat", "a"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_char(["abcdefghijklmnopqrstuvwxyz ."]).save(tmp_path / "tokenizer")
    return write_config(tmp_path / "c.yaml", **SAMPLED)


SAMPLED = {"sample_prompts": PROMPTS, "tokenizer_path": "tokenizer", "num_steps": 8}


def samples(folder):
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert all(line.pop("time") > 1e9 for line in lines)
    return lines


def test_they_are_kept_shown_and_the_same_in_a_resumed_run(config, tmp_path, capsys):
    """Also where the run stood on other devices."""
    assert run_config(config) == 0
    whole = samples(tmp_path / "out")
    assert [(line["step"], line["prompt"]) for line in whole] == [
        (step, prompt) for step in (3, 6, 8) for prompt in PROMPTS
    ]
    assert all(isinstance(line["text"], str) and line["text"] for line in whole)
    assert len({line["text"] for line in whole}) == len(whole)
    assert len(re.findall(r"^sample      the cat", capsys.readouterr().err, re.MULTILINE)) == 3
    assert run_config(config, "out/step0000003") == 0
    assert samples(tmp_path / "out") == whole


@pytest.mark.parametrize("every, steps", [(5, [5, 8])])
def test_sample_every_counts_steps_without_evaluations_too(config, tmp_path, every, steps):
    write_config(config, **SAMPLED, sample_every=every, val_data=...)
    assert run_config(config) == 0
    assert sorted({line["step"] for line in samples(tmp_path / "out")}) == steps


def test_nothing_else_changes(config, tmp_path):
    assert run_config(config) == 0
    write_config(config, **SAMPLED | {"sample_prompts": None}, checkpoint_dir="plain")
    assert run_config(config) == 0
    left, right = (tmp_path / folder / "final.safetensors" for folder in ("out", "plain"))
    assert left.read_bytes() == right.read_bytes()
    assert not (tmp_path / "plain/samples.jsonl").exists()


BAD = {
    "no tokenizer": (
        {"tokenizer_path": ...},
        "sample_prompts needs a tokenizer; set tokenizer_path",
    ),
    "no such tokenizer": (
        {"tokenizer_path": "nowhere"},
        "sample_prompts needs the tokenizer of tokenizer_path: nowhere: ",
    ),
    "no room": ({"sample_prompts": ["abcd" * 8]}, "sample_prompts: .*max_seq_len"),
    "another model's": ({"model": {"vocab_size": 20}}, "more than the model's vocab_size=20"),
    "bidirectional": (
        {"model": {"attention": {"mask_type": "bidirectional"}}},
        "writes from left to right",
    ),
    "no prompts": (
        {"sample_prompts": ..., "sample_every": 5},
        "sample_every=5 needs sample_prompts",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_sampled_is_refused_before_anything_is_written(config, tmp_path, case):
    changes, message = BAD[case]
    write_config(config, **SAMPLED | changes)
    with pytest.raises(UserError, match=message):
        run_config(config)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_way_of_the_samples_is_named(config, tmp_path):
    write_config(config, **SAMPLED)
    (tmp_path / "out/samples.jsonl").mkdir(parents=True)
    with pytest.raises(OSError, match=r"^\[Errno \d+\] Is a directory: '[^']*/samples.jsonl'$"):
        run_config(config)


def test_two_processes_and_a_sharded_mesh_write_the_same(config, tmp_path):
    changes = SAMPLED | {"eval_every": 8}
    write_config(config, **changes, mesh={"fsdp": 2, "data": 1})
    runs = start_processes(config)
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    both = samples(tmp_path / "out")
    assert len(both) == 2
    mesh = {"data": 1, "fsdp": 2, "tensor": 2}
    write_config(config, **changes, mesh=mesh, checkpoint_dir="four")
    done = command("llm-train", config, cwd=tmp_path, env=devices(4))
    assert done.returncode == 0, done.stderr
    assert samples(tmp_path / "four") == both
