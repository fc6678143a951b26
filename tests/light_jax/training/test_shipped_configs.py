"""Every shipped config, scaled down to a few steps, trains and loads in PyTorch strictly."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import TINY, column, merged

from light_jax.training.loop import run_config
from light_llm.checkpoint import load_transformer
from light_llm.checkpoint.reading import model_config, read_checkpoint
from light_llm.models.transformer import Transformer

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))

SMALLER = {
    **{key: TINY[key] for key in ("train_data", "val_data", "checkpoint_dir", "seq_len")},
    **{"batch_size": 2, "num_steps": 2, "eval_steps": 1, "log_every": 1, "num_workers": 1},
    "model": {"vocab_size": 131, "max_seq_len": 32, "num_layers": 1},
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_trains_and_loads_in_pytorch(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = yaml.safe_load(path.read_text())
    config = merged(shipped, SMALLER)
    heads = config["model"].get("attention", {}).get("num_heads", 8)
    head_dim = config["model"].get("attention", {}).get("head_dim", 8)
    config["model"]["d_model"] = heads * head_dim
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert run_config("c.yaml") == 0
    assert len(column(Path("out"), "train/loss")) == 2

    cfg = model_config(read_checkpoint("out/best"))
    model = Transformer(cfg)
    model.load_state_dict(load_file("out/best.safetensors"), strict=True)
    tokens = torch.arange(10)[None]
    assert torch.equal(model.eval()(tokens), load_transformer("out/best")(tokens))
