"""torch.optim's state -> optax -> torch.optim is the identity, bit for bit, in every variant."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from architectures import CASES, configs, reference_config, tiny, tokens_for
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny_runs import REFERENCE

from conversion.mapping import idle_keys, parameter_groups, table
from light_jax.config import TrainingConfig
from light_jax.torch_runs import file as torch_file
from light_jax.torch_runs.optimizer import optimizer_from_torch, optimizer_to_torch
from light_jax.torch_runs.parts import MOMENTS, parts
from light_jax.training.optimizer import make_optimizer
from light_jax.training.step import init_params
from light_llm.errors import UserError

torch = pytest.importorskip("torch")
from torch_trainer import TorchRun, bits, saved  # noqa: E402

from light_llm.models.transformer.model import Transformer  # noqa: E402

KINDS = list(MOMENTS)


def run_of(model: Any, kind: str, **optimizer: Any) -> TorchRun:
    cfg = TrainingConfig.model_validate(
        {
            "train_data": str(REFERENCE / "training/adamw-cosine/train"),
            "seq_len": 8,
            "model": model,
            "optimizer": {"type": kind, **optimizer},
        }
    )
    return TorchRun(cfg, Transformer(cfg.model))


def update(run: TorchRun, times: int, seed: int = 0) -> None:
    """Updates by real gradients; then moments of random bits, of which some make no number."""
    for _ in range(times):
        run.model.zero_grad()
        tokens = torch.from_numpy(tokens_for(run.cfg.model, 1, 9, seed)).long()
        run.model(tokens).square().mean().backward()
        for optimizer in run.optimizers.values():
            optimizer.step()
    generator = torch.Generator().manual_seed(seed)
    for optimizer in run.optimizers.values():
        for fields in optimizer.state.values():
            for name, value in fields.items():
                if name != "step" and value is not None:
                    random = torch.randint(-(2**31), 2**31, value.shape, generator=generator)
                    value.copy_(random.to(torch.int32).view(torch.float32))


def there_and_back(run: TorchRun, path) -> tuple[Any, Any]:
    """(the optax state, each torch optimizer's `state` again), through files."""
    torch.save({"optimizer": saved(run.optimizers)}, path)
    opt_state = optimizer_from_torch(torch_file.read(path)["optimizer"], run.cfg, path)
    torch_file.write(path, {"state": optimizer_to_torch(opt_state, run.cfg)})
    return opt_state, torch.load(path, weights_only=True)["state"]


@settings(max_examples=30)
@given(configs(), st.sampled_from(KINDS), st.sampled_from([0, 1, 3]), st.integers(0, 2**16))
def test_a_round_trip_is_the_identity(tmp_path_factory, model, kind, updates, seed):
    run = run_of(model.model_dump(), kind)
    update(run, updates, seed)
    path = tmp_path_factory.getbasetemp() / "round_trip.state.pt"
    _, back = there_and_back(run, path)
    given_state = {name: owner.state_dict()["state"] for name, owner in run.optimizers.items()}
    if updates == 0 and kind == "sgd":  # zeros and no buffer at all give the same first update
        assert not any(fields["momentum_buffer"].any() for fields in back[""].values())
    else:
        assert bits(back) == bits(given_state)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_that_of_the_optimizer(kind, tmp_path):
    """The tree, shapes and dtypes that `init` gives, each moment where the table says."""
    run = run_of(tiny({"tie_embeddings": False, "attention": {"bias": True}}).model_dump(), kind)
    update(run, 2)
    opt_state, _ = there_and_back(run, tmp_path / "s.pt")
    blank = jax.eval_shape(lambda: make_optimizer(run.cfg.optimizer).init(init_params(run.cfg)))
    assert jax.tree.structure(opt_state) == jax.tree.structure(blank)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(opt_state)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(blank)
    ]
    parameters, seen = dict(run.model.named_parameters()), 0
    owned = [(part, ours) for part in parts(run.cfg) for ours in MOMENTS[part.kind]]
    for part, ours in owned:
        moments, theirs = optax.tree.get(opt_state, ours), MOMENTS[part.kind][ours]
        for entry in part.entries:
            value = moments
            for step in entry.path:
                value = value[step]
            stored = run.optimizers[part.name].state[parameters[entry.key]][theirs].numpy()
            stored = stored.T if entry.transposed else stored
            assert np.asarray(value[...]).tobytes() == np.ascontiguousarray(stored).tobytes()
            seen += 1
    assert seen == len(jax.tree.leaves(opt_state)) - (kind != "sgd")  # the count
    if kind != "sgd":
        assert optax.tree.get(opt_state, "count") == 2


@pytest.mark.parametrize("case", CASES)
def test_groups_and_idle_parameters(case):
    """Matrices first, both in the order of the table; idle are those without a gradient."""
    cfg = reference_config(case)
    groups = parameter_groups(cfg)
    assert [len(entry.shape) >= 2 for group in groups for entry in group] == [
        *[True] * len(groups[0]),
        *[False] * len(groups[1]),
    ]
    order = {entry.key: number for number, entry in enumerate(table(cfg))}
    for group in groups:
        assert [order[entry.key] for entry in group] == sorted(order[entry.key] for entry in group)
    assert sum(map(len, groups)) == len(order)
    expected = load_file(REFERENCE / "model" / case / "expected.safetensors")
    trained = {name.removeprefix("grad:") for name in expected if name.startswith("grad:")}
    assert idle_keys(cfg) == set(order) - trained


def test_parameters_without_an_entry_read_as_zeros(tmp_path):
    run = run_of(tiny().model_dump(), "adamw")
    update(run, 1)
    state_dict = run.optimizer.state_dict()
    del state_dict["state"][0]  # tok_emb.weight
    torch.save(state_dict, tmp_path / "s.pt")
    read = torch_file.read(tmp_path / "s.pt")
    opt_state = optimizer_from_torch(read, run.cfg, "s.pt")
    for name in ("mu", "nu"):
        moments = optax.tree.get(opt_state, name)
        assert not np.asarray(moments["tok_emb"]["weight"][...]).any()
        assert np.asarray(moments["final_norm"]["weight"][...]).any()


def test_half_precision_moments_become_float32_exactly(tmp_path):
    run = run_of(tiny().model_dump(), "sgd")
    state_dict = run.optimizer.state_dict()
    halves = [torch.bfloat16, torch.float16]
    entries = [entry for group in parameter_groups(run.cfg.model) for entry in group]
    state_dict["state"] = {
        number: {"momentum_buffer": torch.randn(entry.shape).to(halves[number % 2])}
        for number, entry in enumerate(entries)
    }
    torch.save(state_dict, tmp_path / "s.pt")
    opt_state = optimizer_from_torch(torch_file.read(tmp_path / "s.pt"), run.cfg, "s.pt")
    back = optimizer_to_torch(opt_state, run.cfg)[""]
    for number, fields in state_dict["state"].items():
        exact = fields["momentum_buffer"].float().numpy()
        np.testing.assert_array_equal(back[number]["momentum_buffer"], exact)


def broken(change) -> dict[str, Any]:
    """The state dict of AdamW after an update, changed, as it would be read."""
    run = run_of(tiny().model_dump(), "adamw")
    update(run, 1)
    state_dict = run.optimizer.state_dict()
    state_dict["state"] = {
        number: {name: value.numpy() for name, value in fields.items()}
        for number, fields in state_dict["state"].items()
    }
    change(state_dict)
    return {"saved": state_dict, "cfg": run.cfg}


def _set(place, name):
    return lambda value: lambda s: place(s).__setitem__(name, value)


_group, _other = (lambda s: s["param_groups"][0]), (lambda s: s["param_groups"][1])
_entry = lambda s: s["state"][2]  # noqa: E731  # layers.0.attn.k_proj.weight
DAMAGE = [
    (lambda s: s.pop("state"), "is not a torch.optim state dict"),
    (lambda s: s["param_groups"].pop(), "must have 2 parameter groups.*and has 1"),
    (lambda s: _group(s)["params"].pop(), r"param_groups\[0\] has 14 parameters.*15"),
    (lambda s: _other(s)["params"].__setitem__(0, 3), "must number each parameter once"),
    (_set(_group, "betas")((0.9, 0.99)), r"\[0\].betas is \(0.9, 0.99\).* config \(0.9, 0.95\)"),
    (_set(_group, "eps")(1e-6), r"eps is 1e-06, and by the config 1e-08"),
    (_set(_other, "weight_decay")(0.1), r"\[1\].weight_decay is 0.1, and by the config 0.0"),
    (_set(_group, "initial_lr")(1.0), r"initial_lr is 1.0, and by the config 0.0003"),
    (_set(_group, "amsgrad")(True), "amsgrad is True, and by the config False"),
    (_set(_group, "maximize")(True), "maximize is True, and by the config False"),
    (_set(_group, "decoupled_weight_decay")(False), "decoupled_weight_decay is False"),
    (lambda s: _group(s).pop("betas"), "has no betas: it is not from adamw"),
    (lambda s: s["state"].__setitem__(99, {}), r"state\[99\] belongs to no parameter"),
    (lambda s: _entry(s).pop("exp_avg"), "k_proj.weight: holds step, exp_avg_sq, where adamw"),
    (_set(_entry, "exp_avg")(np.zeros((6, 3))), r"k_proj.weight: exp_avg has shape \[6, 3\], the"),
    (_set(_entry, "exp_avg")(np.zeros((6, 24))), "exp_avg is float64, which float32 does not hold"),
    (_set(_entry, "exp_avg")("no"), "exp_avg is not a tensor"),
    (
        _set(_entry, "step")(np.array(7.0)),
        "different update counts, 1 .*, 7 .*k_proj.*must be equal",
    ),
    (_set(_entry, "step")(np.array(0.5)), "a step that is not a whole number"),
]


@pytest.mark.parametrize("change, message", DAMAGE, ids=[message[-24:] for _, message in DAMAGE])
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(UserError, match=message) as refusal:
        optimizer_from_torch(**broken(change), source="x.state.pt")
    assert str(refusal.value).startswith("x.state.pt: not the optimizer state of the run that")


def test_all_that_does_not_fit_is_in_one_message():
    def change(state_dict):
        _entry(state_dict)["exp_avg"] = np.zeros(3, np.float32)
        state_dict["state"][17]["exp_avg_sq"] = np.zeros(5, np.float32)

    with pytest.raises(UserError) as refusal:
        optimizer_from_torch(**broken(change), source="x.state.pt")
    assert len(str(refusal.value).splitlines()) == 3
