"""llm-eval --tasks: lm-evaluation-harness on a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from in_process import call
from tiny_runs import write_config

from light_jax.cli.eval import main
from light_jax.evaluation.tasks import lines
from light_jax.training.loop import run_config
from light_llm import load_tokenizer, load_transformer
from light_llm.cli import preprocess

QUESTIONS = [("The cat sat on the", [" mat", " moon"], 0), ("One and one are", [" two", " x"], 1)]
TASK = """
task: pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run in out/ with its tokenizer, and the task `pairs` in mine/."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "a.txt").write_text("The cat sat on the mat. One and one are two.\n" * 50)
    (path / "mine").mkdir()
    with (path / "questions.jsonl").open("w") as file:
        for text, choices, answer in QUESTIONS:
            file.write(json.dumps({"text": text, "choices": choices, "answer": answer}) + "\n")
    (path / "mine/pairs.yaml").write_text(TASK.format(file=path / "questions.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        flags = ["--input", "a.txt", "--output", "data", "--vocab-size", 270, "--val-fraction", 0]
        assert call(preprocess.main, *flags).exit_code == 0
        config = write_config(
            path / "tiny.yaml",
            train_data="data/train",
            val_data=...,
            tokenizer_path="data/tokenizer",
            model={"vocab_size": 270},
        )
        assert run_config(config) == 0
    return path


def log_p(model, tokenizer, text: str, more: str) -> float:
    before, after = tokenizer.encode(text), tokenizer.encode(more)
    with torch.no_grad():
        logs = model(torch.tensor([before + after]))[0].log_softmax(-1)
    return sum(float(logs[len(before) + i - 1, id]) for i, id in enumerate(after))


def test_a_task_gives_what_the_models_own_probabilities_give(folder, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(folder)
    done = call(main, "out", "--tasks", "pairs", "--include-path", "mine", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["checkpoint"], report["step"]) == ("out/final", 6)
    model, tokenizer = load_transformer("out/final"), load_tokenizer("data/tokenizer")
    right = 0
    for text, choices, answer in QUESTIONS:
        logs = [log_p(model, tokenizer, text, choice) for choice in choices]
        assert not math.isclose(*logs, rel_tol=1e-3)
        right += logs.index(max(logs)) == answer
    assert report["tasks"]["pairs"]["acc"] == right / len(QUESTIONS)
    rows = [line.split() for line in lines(report["tasks"])]
    assert rows[0] == ["task", "metric", "value", "stderr"]
    assert rows[1][:3] == ["pairs", "acc", f"{right / len(QUESTIONS):.4f}"]


def test_a_task_that_is_not_there_is_refused(folder, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(folder)
    done = call(main, "out", "--tasks", "hellaswagg")
    assert done.exit_code == 2
    assert "there is no task 'hellaswagg'; did you mean hellaswag" in done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tasks", "pairs", "--data", "data/train"], "--tasks goes with neither --data nor"),
        (["--data", "data/train", "--include-path", "x"], "--include-path belongs to --tasks"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    done = call(main, "out", *flags)
    assert done.exit_code == 2
    assert message in done.stderr


def test_without_the_harness_the_extra_is_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("light_jax.evaluation.tasks.find_spec", lambda name: None)
    done = call(main, "out", "--tasks", "pairs")
    assert done.exit_code == 2
    assert "pip install 'light-llm-jax[eval]'" in done.stderr
