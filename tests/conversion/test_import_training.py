"""A run that starts from a Hugging Face folder, and the tutorial, command by command."""

from __future__ import annotations

import re
import shlex
import shutil

import numpy as np
import pytest
import yaml
from foreign_models import save_model, save_tokenizer
from safetensors.numpy import load_file
from tiny_runs import (
    ROOT,
    assert_same_weights,
    column,
    command,
    contents,
    devices,
    write_config,
)

from conversion.families import our_config
from conversion.import_hf import import_model
from light_jax.training.loop import run_config
from light_llm import Sampling, generate_text, load_tokenizer, load_transformer
from light_llm.errors import UserError
from light_llm.models.transformer import TransformerConfig

MODEL = {
    "vocab_size": 131,
    "max_seq_len": 96,
    "d_model": 48,
    "num_layers": 2,
    "tie_embeddings": False,
    "attention": {"num_heads": 4, "num_kv_heads": 2, "qkv_bias": True},
    "ffn": {"ffn_dim": 80},
}
# a rate of 0 in its only step: the weights stay what they were
ONE_STEP = {"num_steps": 1, "val_data": ..., "scheduler": {"warmup_steps": 5}}
SMOLLM2 = {
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """In several files, of bfloat16."""
    folder = tmp_path_factory.mktemp("hf") / "qwen2"
    save_model(folder, "qwen2")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(folder, model=MODEL, **changes):
    write_config(folder / "c.yaml", init_from="qwen2", model=model, **ONE_STEP, **changes)


def test_a_run_starts_from_a_folder_on_one_device_or_more(qwen2, here):
    shutil.copytree(qwen2, here / "qwen2")
    import_model("qwen2", "imported")
    stored = load_file("imported.safetensors")
    start(here)
    run_config("c.yaml")
    final = load_file("out/final.safetensors")
    assert final.keys() == stored.keys()
    for key, value in stored.items():
        np.testing.assert_array_equal(final[key], value.astype(np.float32), err_msg=key)
    start(here, mesh={"data": 1, "fsdp": 2}, checkpoint_dir="two")
    done = command("llm-train", "c.yaml", cwd=here, env=devices(2))
    assert done.returncode == 0, done.stderr
    assert_same_weights(here / "two/final.safetensors", here / "out/final.safetensors")


def refused(folder, words):
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        run_config("c.yaml")
    for word in words:
        assert word in str(caught.value)
    assert contents(folder) == before
    return str(caught.value)


def test_a_config_of_another_model_is_told_each_key_to_set(qwen2, here):
    shutil.copytree(qwen2, here / "qwen2")
    other = {
        "max_seq_len": 128,
        "dropout": 0.1,
        "gradient_checkpointing": True,
        "tie_embeddings": True,
        "attention": {"num_kv_heads": 4, "qkv_bias": False},
        "positional": {"rope_base": 500.0, "rope_scaling": {"type": "llama3", "factor": 2.0}},
        "ffn": {"ffn_dim": ..., "variant": "geglu"},
    }
    start(here, {**MODEL, **other, "attention": MODEL["attention"] | other["attention"]})
    message = refused(here, ["qwen2: the section `model` of the config is not this model; set"])
    assert [line.split("  (")[0].strip() for line in message.splitlines()[1:]] == [
        "model.max_seq_len: 96",
        "model.tie_embeddings: false",
        "model.attention.num_kv_heads: 2",
        "model.attention.qkv_bias: true",
        "model.positional.rope_base: 10000.0",
        "model.positional.rope_scaling: null",
        "model.ffn.variant: swiglu",
        "model.ffn.ffn_dim: 80",
    ]


def as_pickle(folder):
    for path in folder.glob("*.safetensors*"):
        path.rename(folder / f"pytorch_{path.stem}.bin")


def without_index(folder):
    (folder / "model.safetensors.index.json").unlink()


def wrapped(folder):
    from safetensors.numpy import save_file

    index = folder / "model.safetensors.index.json"
    index.write_text(re.sub(r'"(model\.|lm_head)(?=[\w.]*":)', r'"_orig_mod.\1', index.read_text()))
    for path in folder.glob("*.safetensors"):
        save_file({f"_orig_mod.{key}": value for key, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    "change, words",
    [
        (as_pickle, ["pickles", "save_pretrained"]),
        (without_index, ["no model.safetensors.index.json"]),
        (wrapped, ["`_orig_mod.`, which torch.compile adds", "llm-convert from-hf"]),
    ],
)
def test_what_cannot_be_started_from_is_named(change, words, qwen2, here):
    shutil.copytree(qwen2, here / "qwen2")
    change(here / "qwen2")
    start(here)
    refused(here, words)


def test_a_file_of_a_folder_or_of_a_wrapped_model_is_named(qwen2, here):
    from safetensors.numpy import save_file

    first = sorted(qwen2.glob("*.safetensors"))[0]
    write_config(here / "c.yaml", init_from=str(first), model=MODEL, **ONE_STEP)
    refused(here, ["keys are those of a Hugging Face model", f"name its folder, {qwen2}"])
    save_file({"_orig_mod.tok_emb.weight": np.zeros((131, 48))}, here / "w.safetensors")
    write_config(here / "c.yaml", init_from="w.safetensors", model=MODEL, **ONE_STEP)
    refused(here, ["`_orig_mod.`, which torch.compile adds"])
    write_config(here / "c.yaml", init_from="org/name", model=MODEL, **ONE_STEP)
    done = command("llm-train", "c.yaml", cwd=here, env={"HF_HUB_OFFLINE": "1", "HF_HOME": "home"})
    assert done.returncode == 2
    assert "org/name: there is no such folder here" in done.stderr


def test_a_name_of_the_hub_is_found_in_its_cache_without_a_connection(qwen2, here):
    snapshot = here / "home/hub/models--org--name/snapshots" / ("0" * 40)
    shutil.copytree(qwen2, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("0" * 40)
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(here / "home")}
    done = command("llm-convert", "from-hf", "org/name", "imported", cwd=here, env=env)
    assert done.returncode == 0, done.stderr
    write_config(here / "c.yaml", init_from="org/name", model=MODEL, **ONE_STEP)
    done = command("llm-train", "c.yaml", cwd=here, env=env)
    assert done.returncode == 0, done.stderr
    final, stored = load_file("out/final.safetensors"), load_file("imported.safetensors")
    assert all(np.array_equal(final[key], value) for key, value in stored.items())


# The tutorial


def tutorial():
    """(its commands, its config)."""
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```$", (ROOT / "docs/continue.md").read_text(), re.MULTILINE | re.DOTALL
    )
    commands = [
        line for language, text in blocks if language == "bash" for line in text.splitlines()
    ]
    (config,) = (yaml.safe_load(text) for language, text in blocks if language == "yaml")
    return commands, config


def test_the_tutorials_config_is_of_its_model():
    _, config = tutorial()
    assert TransformerConfig.model_validate(config["model"]) == TransformerConfig.model_validate(
        our_config(SMOLLM2, "config.json")
    )


def test_the_tutorial_works_as_it_stands(here):
    """Every command in its order, with a tiny model of the same kind, and few and short steps."""
    words = "the keeper of a lighthouse climbs up and looks out over every wave of the sea"
    draw = np.random.default_rng(0)
    (here / "my-text").mkdir()
    texts = [" ".join(draw.choice(words.split(), 200)) for _ in range(30)]
    for number, text in enumerate(texts):
        (here / f"my-text/{number}.txt").write_text(text)
    ids = save_tokenizer(here / "tiny", " ".join(texts))
    save_model(here / "tiny", "llama", vocab_size=ids + 3, num_hidden_layers=1, rope_theta=100000.0)
    commands, config = tutorial()
    written = []
    for line in commands:
        args = shlex.split(line.replace("HuggingFaceTB/SmolLM2-135M", "tiny"))
        done = command(*args, *(["--max-tokens", "9"] if args[0] == "llm-run" else []), cwd=here)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        if args[1] == "from-hf":
            printed = done.stdout[done.stdout.index("model:") :]
            small = {"seq_len": 32, "num_steps": 40, "dtype": "float32", "save_every": 40}
            config |= small | yaml.safe_load(printed) | {"eval_every": 40, "eval_steps": 2}
            (here / "smollm2-text.yaml").write_text(yaml.safe_dump(config))
        if args[0] == "llm-run":
            written.append(done.stdout)
    assert len(written) == 2
    assert all(text.startswith("The lighthouse keeper") for text in written)
    losses = column(here / "checkpoints/smollm2-text", "train/loss")
    assert losses[-1] < losses[0] - 0.1
    # the folder itself, in the other framework
    sampling = Sampling(max_tokens=12, temperature=0.0)
    text = "".join(
        generate_text(load_transformer("tiny"), load_tokenizer("tiny"), "the sea", sampling)
    )
    flags = ("--temperature", 0, "--max-tokens", 12, "--backend", "jax")
    done = command("llm-run", "--checkpoint", "tiny", "--prompt", "the sea", *flags, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"the sea{text}\n"
