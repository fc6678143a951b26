"""All problems of a config at once, and the names that other trainers have for its keys."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_runs import TINY, merged

from light_jax.config import TrainingConfig, load_config
from light_jax.othernames import OTHER_NAMES
from light_llm.configfile import keys_of, known_as
from light_llm.errors import IllegalConfig, UserError

KEYS = keys_of(TrainingConfig)


def problems(tmp_path, **changes) -> list[str]:
    """The lines on a tiny run's config with `changes`."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(merged(TINY, changes)))
    with pytest.raises(IllegalConfig) as refusal:
        load_config(path)
    return [line for _, line in refusal.value.problems]


# Names


def test_each_other_name_stands_for_a_key_and_is_none():
    for name, meant in OTHER_NAMES.items():
        assert meant.split()[0] in KEYS, name
        assert name == name.lower()
        assert name not in TrainingConfig.model_fields, name


@pytest.mark.parametrize(
    "name, key",
    {
        "block_size": "seq_len",
        "context_length": "seq_len",
        "n_layer": "model.num_layers",
        "n_head": "model.attention.num_heads",
        "n_embd": "model.d_model",
        "learning_rate": "optimizer.lr",
        "gradient_clip": "optimizer.grad_clip",
        "max_grad_norm": "optimizer.grad_clip",
        "max_steps": "num_steps",
        "max_iters": "num_steps",
        "per_device_train_batch_size": "batch_size",
        "warmup_iters": "scheduler.warmup_steps",
        "warmup_ratio": "scheduler.warmup_steps",
        "min_lr": "scheduler.min_lr_ratio",
        "eval_interval": "eval_every",
        "out_dir": "checkpoint_dir",
        "num_key_value_heads": "model.attention.num_kv_heads",
        "Block-Size": "seq_len",
    }.items(),
)
def test_a_name_of_another_trainer_is_told_ours(tmp_path, name, key):
    (line,) = problems(tmp_path, **{name: 1})
    assert line.startswith(f"{name} is not a known key; here it is {key}")
    (line,) = problems(tmp_path, model={name: 1})
    assert line.startswith(f"model.{name} is not a known key; here it is {key}")


@pytest.mark.parametrize(
    "changes, line",
    [
        (
            {"num_heads": 4},
            "num_heads is not a key here; it belongs in the section 'model.attention'",
        ),
        ({"dropout": 0}, "dropout is not a key here; it belongs in the section 'model'"),
        ({"grad_clip": 1}, "grad_clip is not a key here; it belongs in the section 'optimizer'"),
        (
            {"optimizer": {"num_steps": 1}},
            "optimizer.num_steps is not a key here; it belongs at the top, in no section",
        ),
        (
            {"model": {"positional": {"rope_scaling": {"type": "linear", "factr": 2}}}},
            "model.positional.rope_scaling.factr is not a known key; did you mean 'factor'?",
        ),
    ],
)
def test_a_key_in_the_wrong_place_is_told_the_right_one(tmp_path, changes, line):
    assert line in problems(tmp_path, **changes)


def test_a_name_is_a_key_with_or_without_its_section():
    assert known_as(TrainingConfig, "optimizer.lr") == "optimizer.lr"
    assert known_as(TrainingConfig, "lr") == "optimizer.lr"
    assert known_as(TrainingConfig, "num-steps") == "num_steps"
    assert known_as(TrainingConfig, "colour") is None


# All at once


def keys(lines: list[str]) -> list[str]:
    return [line.partition("=")[0].partition(" ")[0] for line in lines]


def test_rules_between_fields_are_told_with_the_rest(tmp_path):
    lines = problems(
        tmp_path,
        block_size=3,
        num_steps=0,
        seq_len=64,
        bf16_model_weights=True,
        mesh={"fsdp": -1},
        optimizer={"lr": -1},
        model={
            "attention": {"num_kv_heads": 3, "mask_type": "sliding_window"},
            "positional": {"rope_scaling": {"type": "llama3", "factor": 0}},
        },
    )
    # seq_len was meant by block_size, so its own rule waits
    assert keys(lines) == [
        "block_size",
        "model.attention.num_kv_heads",
        "model.positional.rope_scaling.factor",
        "num_steps",
        "optimizer.lr",
        "mesh.data",
        "model.attention.window_size",
        "bf16_model_weights",
    ]


def test_several_rules_of_one_section_are_all_told(tmp_path):
    lines = problems(
        tmp_path, seq_len=64, bf16_model_weights=True, profile_steps=[5, 3], batch_size="x"
    )
    assert keys(lines) == ["batch_size", "seq_len", "bf16_model_weights", "profile_steps"]


@pytest.mark.parametrize(
    "changes, only",
    [
        ({"seq_len": 64, "model": {"max_seq_len": "x"}}, ["model.max_seq_len"]),
        ({"seq_len": "x", "model": {"max_seq_len": 8}}, ["seq_len"]),
        # the width of a head follows from both
        ({"model": {"d_model": "x", "attention": {"num_heads": 7}}}, ["model.d_model"]),
        (
            {"model": {"attention": {"num_heads": "x", "num_kv_heads": 3}}},
            ["model.attention.num_heads"],
        ),
        (
            {"seq_len": 4096, "model": {"max_seq_len": ..., "max_seq_lenn": 8192}},
            ["model.max_seq_lenn"],
        ),
        ({"train_data": ..., "seq_len": 64}, ["train_data", "seq_len"]),
        ({"model": 3}, ["model"]),
    ],
)
def test_a_rule_is_silent_on_fields_with_a_problem_of_their_own(tmp_path, changes, only):
    assert keys(problems(tmp_path, **changes)) == only


def test_one_problem_of_a_path_is_one_line(tmp_path):
    for value in ({"a": 1}, [True], [["a"]], True):
        (tmp_path / "c.json").write_text(json.dumps({"train_data": value}))
        with pytest.raises(IllegalConfig) as refusal:
            load_config(tmp_path / "c.json")
        ((_, line),) = refusal.value.problems
        assert line.startswith("train_data=")


def test_a_text_that_yaml_reads_as_a_switch_is_told_to_be_quoted(tmp_path):
    (tmp_path / "c.yaml").write_text("train_data: x\nwandb_run_name: no\ncheckpoint_dir: off\n")
    with pytest.raises(UserError) as refusal:
        load_config(tmp_path / "c.yaml")
    lines = str(refusal.value).splitlines()
    assert len(lines) == 2
    assert all("must be a text, not true or false" in line and "quotes" in line for line in lines)


# Paths


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("UNSET", raising=False)
    return tmp_path


def test_paths_of_a_file_are_replaced_and_those_of_a_snapshot_are_not(home):
    paths = {
        "train_data": ["~/a", "$RUNS/*.parquet", "a$$b"],
        "val_data": "${RUNS}/val",
        "tokenizer_path": "~/tokenizer",
        "init_from": "$RUNS/x/best",
        "checkpoint_dir": "~/out",
        "wandb_run_name": "$RUNS ~",
    }
    Path("c.yaml").write_text(yaml.safe_dump(TINY | paths))
    cfg = load_config("c.yaml")
    assert cfg.train_data == [f"{home}/home/a", f"{home}/runs/*.parquet", "a$b"]
    assert (cfg.val_data, cfg.init_from) == (f"{home}/runs/val", f"{home}/runs/x/best")
    assert (cfg.tokenizer_path, cfg.checkpoint_dir) == (
        f"{home}/home/tokenizer",
        f"{home}/home/out",
    )
    assert cfg.wandb_run_name == "$RUNS ~"
    assert b"~/out" in cfg.source.text
    snapshot = cfg.model_dump(mode="json") | {"train_data": "$UNSET/x", "checkpoint": {}}
    Path("best.config.json").write_text(json.dumps(snapshot))
    assert load_config("best.config.json").train_data == "$UNSET/x"


@pytest.mark.parametrize("key", TrainingConfig.path_keys)
def test_a_variable_that_is_not_set_is_named(home, key):
    lines = problems(home, **{key: "$UNSET/x"})
    assert lines == [
        f"{key}='$UNSET/x' needs the environment variable UNSET, which is not set; set it, or "
        "write the path out ($$ is a dollar sign)"
    ]


@pytest.mark.parametrize("key", TrainingConfig.hub_keys)
def test_the_value_of_a_variable_is_never_asked_of_a_hub(home, monkeypatch, key):
    monkeypatch.setenv("SECRET", "hunter2")
    for value in ("$SECRET", "somebody/${SECRET}"):
        (line,) = problems(home, **{key: value})
        assert "must begin with / or ./" in line
        assert "hunter2" not in line
    Path("c.yaml").write_text(yaml.safe_dump(TINY | {key: "./$SECRET"}))
    assert getattr(load_config("c.yaml"), key) == "./hunter2"
