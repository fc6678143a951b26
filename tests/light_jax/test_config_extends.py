"""`extends`: two files are one config, and the copy of a run needs one."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import TINY, contents, write_config

from light_jax.config import TrainingConfig, load_config
from light_jax.training.loop import run_config
from light_llm.configsource import read_source
from light_llm.configtext import dump, parse_mapping
from light_llm.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(**files: str) -> None:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)


def refusal(path: str = "c.yaml") -> str:
    with pytest.raises(UserError) as error:
        load_config(path)
    return str(error.value)


def test_sections_are_merged_and_other_values_replaced():
    written(
        base="train_data: [a, b]\nseed: 1\noptimizer: {lr: 1e-3, beta1: 0.5}\nval_data: v\n",
        c="extends: base.yaml\ntrain_data: [c]\noptimizer: {lr: 1e-4}\nval_data: null\n",
    )
    cfg = load_config("c.yaml")
    assert (cfg.train_data, cfg.val_data, cfg.seed) == (["c"], None, 1)
    assert (cfg.optimizer.lr, cfg.optimizer.beta1) == (1e-4, 0.5)


def test_the_path_is_relative_to_the_file_that_says_it(monkeypatch, tmp_path):
    (tmp_path / "deep").mkdir()
    Path("base.yaml").write_text("train_data: x\nseed: 3\n")
    Path("deep/c.yaml").write_text("extends: ../base.yaml\n")
    assert load_config("deep/c.yaml").seed == 3
    monkeypatch.setenv("WHERE", str(tmp_path))
    Path("deep/c.json").write_text('{"extends": "$WHERE/base.yaml", "num_steps": 7}')
    cfg = load_config("deep/c.json")
    assert (cfg.seed, cfg.num_steps) == (3, 7)


COMMENTED = """# A sweep.
extends: base.yaml      # what is the same

optimizer:
    # higher than there
    lr: 1e-3
model: {d_model: 32}    # narrow

# where
checkpoint_dir: out"""


def test_the_copy_keeps_the_comments_of_the_file_and_needs_no_other():
    written(
        base="train_data: x\nmodel:\n  num_layers: 2\n  attention: {num_heads: 4}\n"
        "optimizer:\n  type: sgd\n  lr: 1\nwandb_run_name: 'no'\n",
        c=COMMENTED,
    )
    text = load_config("c.yaml").source.text.decode()
    assert text == (
        "# A sweep.\n"
        "# What base.yaml says is written out here.      # what is the same\n"
        "\noptimizer:\n    # higher than there\n    lr: 1e-3\n    type: sgd\n"
        "model: {num_layers: 2, attention: {num_heads: 4}, d_model: 32}    # narrow\n"
        "\n# where\ncheckpoint_dir: out\n"
        "train_data: x\nwandb_run_name: 'no'\n"
    )
    whole = load_config("c.yaml")
    written(c=text)
    assert load_config("c.yaml") == whole


def test_a_file_without_a_base_is_copied_to_the_byte():
    text = "train_data: x\r\n# no end of line"
    Path("c.yaml").write_bytes(text.encode())
    assert load_config("c.yaml").source.text == text.encode()


NAMES = st.sampled_from(["a", "b", "c", "no", "1", "x y", "é"])
VALUES = st.recursive(
    st.sampled_from(["1e6", "no", "~", "#", "a: b", "é", "", " x", "0x1", "-", None, True]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
MAPPINGS = st.dictionaries(NAMES, VALUES, max_size=4)


@given(MAPPINGS, MAPPINGS, st.booleans())
def test_the_copy_says_what_the_two_files_say(tmp_path_factory, base, own, flow):
    folder = tmp_path_factory.getbasetemp()
    (folder / "base.yaml").write_text(dump(base))
    (folder / "own.yaml").write_text(dump({"extends": "base.yaml"} | own, flow=flow))
    source = read_source(folder / "own.yaml")
    assert parse_mapping(source.text, "x.yaml") == source.data
    assert parse_mapping(dump(own), "x.yaml") == own
    assert source.data.keys() == base.keys() | own.keys()


def test_two_levels_are_refused():
    written(
        a="train_data: x\n", b="extends: a.yaml\n", c="extends: b.yaml\n", d="extends: d.yaml\n"
    )
    assert refusal().startswith("b.yaml: extends='a.yaml' is one level too many, since c.yaml")
    assert "one level too many" in refusal("d.yaml")


@pytest.mark.parametrize("value", ["[a.yaml, b.yaml]", "null", "''", "true", "{a: b}"])
def test_what_is_extended_is_one_file(value):
    written(c=f"extends: {value}\n")
    assert "must be the path of one config file" in refusal()


def test_a_message_names_the_file_with_the_mistake():
    written(base="train_data: x\nseed: y\nnum_steps: 0\n", c="extends: base.yaml\nnum_steps: z\n")
    assert refusal().splitlines() == [
        "c.yaml: num_steps='z' must be a whole number",
        "c.yaml: seed='y' must be a whole number (in base.yaml)",
    ]
    written(base="train_data: x\nseed: 1\nseed: 2\n")
    assert refusal().startswith("base.yaml: line 3: the key 'seed' is there twice")
    written(c="extends: none.yaml\n")
    assert refusal().startswith("none.yaml: there is no such config file")
    written(c="extends: $UNSET_HERE/a.yaml\n")
    assert "needs the environment variable UNSET_HERE" in refusal()


def test_a_section_has_nothing_to_extend():
    written(c="train_data: x\noptimizer: {extends: base.yaml}\n")
    assert "optimizer.extends" in refusal()


def test_a_run_resumes_from_its_copy_alone(monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    write_config(Path("base.yaml"), val_data=..., num_steps=1, checkpoint_dir="~/out")
    written(c="extends: base.yaml\nnum_steps: 1\n")
    assert run_config("c.yaml") == 0
    copy = Path("home/out/c.yaml")
    Path("base.yaml").unlink()
    copy.write_text(copy.read_text().replace("num_steps: 1", "num_steps: 2"))
    assert run_config(copy, "auto") == 0
    assert sorted(path.name for path in Path("home/out").glob("*.config.json")) == [
        "final.config.json"
    ]
    assert not Path("~").exists()


def test_a_dumped_config_is_the_same_config():
    cfg = TrainingConfig(**TINY, wandb_run_name="1e6", profile_steps=[1, 2])
    written(c=dump(cfg.model_dump(mode="json")))
    assert load_config("c.yaml") == cfg
    assert yaml.safe_load(Path("c.yaml").read_text())["seq_len"] == 16
    assert contents(Path.cwd()).keys() == {"c.yaml"}
