"""The config file: every rule, and the message of every refusal."""

import json

import pytest
import yaml
from pydantic import ValidationError
from tiny_runs import TINY, merged, write_config

from light_jax.config import TrainingConfig, load_config
from light_llm.errors import UserError


def load(tmp_path, text: str, name: str = "c.yaml") -> TrainingConfig:
    (tmp_path / name).write_text(text)
    return load_config(tmp_path / name)


def test_yaml_and_json_are_the_same(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(TINY))
    assert load_config(tmp_path / "c.json") == load_config(write_config(tmp_path / "c.yaml"))


def test_numbers_are_coerced_by_the_field(tmp_path):
    cfg = load(
        tmp_path,
        "train_data: 007\nnum_steps: 1e6\nsave_every: 1_000\noptimizer: {lr: 3e-4, eps: 1}\n"
        "wandb_run_name: 1e6\ntokenizer_path: 2024-01-01\nseed: 0012\n",
    )
    assert (cfg.num_steps, cfg.save_every, cfg.seed) == (1_000_000, 1000, 12)
    assert (cfg.optimizer.lr, cfg.optimizer.eps) == (3e-4, 1.0)
    assert (cfg.train_data, cfg.wandb_run_name, cfg.tokenizer_path) == ("007", "1e6", "2024-01-01")


def test_derived_values_are_resolved_when_loaded(tmp_path):
    cfg = load(
        tmp_path, "train_data: x\nnum_steps: 500\nscheduler: {type: wsd, warmup_steps: null}"
    )
    assert cfg.scheduler.warmup_steps == 50
    assert load(tmp_path, "train_data: x").scheduler.warmup_steps == 100
    attention = cfg.model.attention
    assert (attention.num_kv_heads, attention.head_dim) == (2, 64)
    assert cfg.model.ffn_dim == 1408
    assert TrainingConfig(**cfg.model_dump()) == cfg
    assert TrainingConfig(**json.loads(cfg.model_dump_json())) == cfg


def test_a_checkpoints_snapshot_is_a_config(tmp_path):
    record = {"checkpoint": {"format": 1}}
    (tmp_path / "best.config.json").write_text(json.dumps(TINY | record))
    assert load_config(tmp_path / "best.config.json") == TrainingConfig(**TINY)


def test_a_config_is_frozen():
    cfg = TrainingConfig(**TINY)
    with pytest.raises(ValidationError):
        cfg.seq_len = 3
    with pytest.raises(ValidationError):
        cfg.model.attention.num_heads = 3


ILLEGAL = {
    "unknown key": ({"learning_rat": 1}, "learning_rat is not a known key"),
    "near key": ({"batch_sise": 1}, "did you mean 'batch_size'?"),
    "near key, nested": (
        {"optimizer": {"betta1": 1}},
        "optimizer.betta1 is not a known key; did you mean 'beta1'?",
    ),
    "key of a section": ({"lr": 1}, "lr is not a key here; it belongs in the section 'optimizer'"),
    "missing": ({"train_data": ...}, "train_data is required and not set"),
    "empty data": ({"train_data": []}, "train_data=[] must name a folder, a file or a glob"),
    "choice": ({"dtype": "bf16"}, "dtype='bf16' must be 'bfloat16', 'float16' or 'float32'"),
    "bool for an optional": (
        {"model": {"attention": {"mask_type": "sliding_window", "window_size": True}}},
        "model.attention.window_size=True must be a value",
    ),
    "bool for an optional float": (
        {"model": {"positional": {"rope_scaling": True}}},
        "model.positional.rope_scaling=True must be a value",
    ),
    "mapping for a number": (
        {"keep_last_n": {"a": 1}},
        "keep_last_n={'a': '1'} must be a whole number",
    ),
    "empty checkpoint_dir": ({"checkpoint_dir": ""}, "checkpoint_dir='' must name a folder"),
    "whole number": ({"batch_size": 1.5}, "batch_size=1.5 must be a whole number"),
    "number": ({"batch_size": "many"}, "batch_size='many' must be a whole number"),
    "bound": ({"num_steps": 0}, "num_steps=0 must be greater than or equal to 1"),
    "bool for int": ({"batch_size": True}, "batch_size=True"),
    "int for bool": ({"use_wandb": 1}, "use_wandb=1 must be true or false"),
    "nan": ({"optimizer": {"lr": float("nan")}}, "optimizer.lr"),
    "url": ({"checkpoint_dir": "gs://bucket/x"}, "must be a path on a file system"),
    "seq_len": ({"seq_len": 64}, "seq_len=64 exceeds model.max_seq_len=32"),
    "bf16 weights": (
        {"bf16_model_weights": True},
        "bf16_model_weights=True needs dtype='bfloat16'",
    ),
    "muon's key with adamw": (
        {"optimizer": {"muon_momentum": 0.9}},
        "optimizer.muon_momentum=0.9 is for type='muon', and type is 'adamw'; remove it",
    ),
    "sgd's momentum with muon": (
        {"optimizer": {"type": "muon", "momentum": 0.9}},
        "momentum is not a known key; here it is optimizer.beta1 (or optimizer.muon_momentum)",
    ),
    "two rests": ({"mesh": {"fsdp": -1}}, "only one axis can be -1"),
    "mesh size": ({"mesh": {"fsdp": 0}}, "mesh.fsdp=0 must be 1 or more, or -1"),
    "kv heads do not divide": (
        {"model": {"attention": {"num_heads": 8, "num_kv_heads": 3}}},
        "model.attention.num_kv_heads=3 does not divide num_heads=8; use one of 1, 2, 4, 8",
    ),
    "default kv heads do not divide": (
        {"model": {"attention": {"num_heads": 14, "num_kv_heads": None}}},
        "model.attention.num_kv_heads=3 does not divide num_heads=14; use one of 1, 2, 7, 14",
    ),
    "mqa has one": (
        {"model": {"attention": {"variant": "mqa", "num_kv_heads": 2}}},
        "model.attention.num_kv_heads=2 contradicts variant='mqa'",
    ),
    "mha has all": (
        {"model": {"attention": {"variant": "mha", "num_kv_heads": 2}}},
        "model.attention.num_kv_heads=2 contradicts variant='mha'",
    ),
    "complex has all": (
        {"model": {"attention": {"variant": "complex", "num_kv_heads": 1}}},
        "model.attention.num_kv_heads=1 contradicts variant='complex'",
    ),
    "odd rope": (
        {"model": {"attention": {"head_dim": 7}}},
        "model.attention.head_dim=7 must be even for positional.encoding='rope'",
    ),
    "window": (
        {"model": {"attention": {"mask_type": "sliding_window"}}},
        "model.attention.window_size=None must be set for mask_type='sliding_window'",
    ),
    "pattern of none": (
        {"model": {"attention": {"window_pattern": []}}},
        "model.attention.window_pattern=[] must be a list of whole numbers and null",
    ),
    "pattern with a bool": (
        {"model": {"attention": {"window_pattern": [True]}}},
        "model.attention.window_pattern=[True] must be a list of whole numbers and null",
    ),
    "pattern of another mask": (
        {"model": {"attention": {"window_pattern": [4], "mask_type": "bidirectional"}}},
        "model.attention.window_pattern=[4] needs mask_type='causal'",
    ),
    "window of 0 in a pattern": (
        {"model": {"attention": {"window_pattern": [None, 0]}}},
        "model.attention.window_pattern[1]=0 must be greater than or equal to 1",
    ),
    "heads": ({"model": {"d_model": 2}}, "attention.num_heads=4 exceeds d_model=2"),
}


@pytest.mark.parametrize("changes, message", ILLEGAL.values(), ids=ILLEGAL)
def test_an_illegal_config_names_key_value_and_rule(tmp_path, changes, message):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(merged(TINY, changes)))
    with pytest.raises(UserError) as refusal:
        load_config(config)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith(str(config))


def test_every_problem_is_in_one_message(tmp_path):
    with pytest.raises(UserError) as refusal:
        load(tmp_path, "train_data: x\nnum_steps: 0\nbatch_size: no\noptimizer: {lr: -1}")
    assert [line.split(": ")[1].split("=")[0] for line in str(refusal.value).splitlines()] == [
        "batch_size",
        "num_steps",
        "optimizer.lr",
    ]


BROKEN = {
    "syntax": ("a: [1, 2", "not valid YAML"),
    "not a mapping": ("- 1\n- 2", "must hold key: value pairs at the top, not list"),
    "empty": ("", "must hold key: value pairs"),
    "duplicate": (
        "seed: 1\nlr: 2\nseed: 3",
        "line 3: the key 'seed' is there twice (first on line 1)",
    ),
    "nested duplicate": ("optimizer:\n  lr: 1\n  lr: 2", "line 3: the key 'lr' is there twice"),
    "strange key": ("? [a]\n: 1", "a key must be a plain word"),
    "explicit int": ("seed: !!int abc", "not valid YAML"),
    "explicit date": ("seed: !!timestamp abc", "not valid YAML"),
    "explicit bool": ("seed: !!bool abc", "not valid YAML"),
    "nesting": ("a: " + "[" * 20000, "not valid YAML"),
    "tab": ("a:\n\t- b", "not valid YAML"),
    "python tag": ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
}


@pytest.mark.parametrize("text, message", BROKEN.values(), ids=BROKEN)
def test_broken_yaml_is_one_message(tmp_path, text, message):
    with pytest.raises(UserError) as refusal:
        load(tmp_path, text)
    assert message in str(refusal.value)


def test_json_numbers_are_coerced_like_yamls(tmp_path):
    text = '{"train_data": "x", "wandb_run_name": 1e6, "num_steps": 1e3, "optimizer": {"lr": 1}}'
    cfg = load(tmp_path, text, "c.json")
    assert (cfg.wandb_run_name, cfg.num_steps, cfg.optimizer.lr) == ("1e6", 1000, 1.0)
    with pytest.raises(UserError, match=r"optimizer.lr=NaN"):
        load(tmp_path, '{"train_data": "x", "optimizer": {"lr": NaN}}', "c.json")


def test_a_section_without_keys_is_refused(tmp_path):
    with pytest.raises(UserError, match="model=None must be a section with its own keys"):
        load(tmp_path, "train_data: x\nmodel:\n")


def test_broken_files(tmp_path):
    with pytest.raises(UserError, match="there is no such config file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"must end in .yaml, .yml or .json"):
        load(tmp_path, "{}", "c.toml")
    with pytest.raises(UserError, match="not valid JSON"):
        load(tmp_path, "{", "c.json")
    with pytest.raises(UserError, match="the key 'a' is there twice"):
        load(tmp_path, '{"a": 1, "a": 2}', "c.json")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "latin.yaml")


def test_a_window_without_a_window_mask_is_warned_of():
    with pytest.warns(UserWarning, match="window_pattern=.* is longer than num_layers=2"):
        TrainingConfig(**merged(TINY, {"model": {"attention": {"window_pattern": [4, 4, None]}}}))
    with pytest.warns(UserWarning, match="window_size=4 has no effect with mask_type='causal'"):
        TrainingConfig(**merged(TINY, {"model": {"attention": {"window_size": 4}}}))
