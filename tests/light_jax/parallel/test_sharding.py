"""Results do not depend on the mesh, beyond the order of sums; nor on the number of processes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import (
    assert_same_weights,
    column,
    command,
    devices,
    metrics,
    start_processes,
    train_command,
    write_config,
)

from light_jax.config import TrainingConfig
from light_jax.parallel.sharding import (
    batch_shards,
    check_batch,
    check_heads,
    copies,
    make_mesh,
    path_names,
    state_shardings,
    warn_of_copies,
)
from light_jax.sections import MeshConfig
from light_jax.training.step import init_params, init_state
from light_llm.errors import UserError

EIGHT = devices(8)
MODEL = {
    "vocab_size": 136,  # divides by 8, so that every axis is cut
    "num_layers": 1,
    "attention": {"num_heads": 8, "num_kv_heads": 2, "dropout": 0.1},
    "dropout": 0.1,
    "tie_embeddings": False,
}


def test_a_copy_outlives_the_donation_of_its_original():
    """A save reads it while the next step writes over the state. No program is compiled for it."""
    mesh = make_mesh(MeshConfig(fsdp=min(2, jax.device_count())))
    halves = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    values = [np.arange(2 * n, dtype=np.float32) for n in (1, 7, 50_000)]
    arrays = jax.block_until_ready([jax.device_put(value.copy(), halves) for value in values])
    compiled = []
    listen = lambda name, _, **__: compiled.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    copied = copies(arrays)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not [name for name in compiled if "compile" in name]
    step = jax.jit(lambda xs: [jnp.negative(x) for x in xs], donate_argnums=0)
    for _ in range(3):
        arrays = step(arrays)
    for array, value in zip(copied, values, strict=True):
        assert array.sharding == halves
        np.testing.assert_array_equal(array, value)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train_command(write_config(folder / "c.yaml", model=MODEL, keep_last_n=9))
    return folder / "out"


@pytest.mark.parametrize(
    "mesh", [{"data": 8}, {"fsdp": 8, "data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str
)
def test_any_mesh_gives_one_devices_losses(one_device, tmp_path, mesh):
    """With dropout on: the masks are the same on any mesh, too. Where weights are cut, layers are
    a loop that gathers them, as on a GPU or TPU."""
    cut = mesh.get("fsdp", 1) > 1
    model = {**MODEL, "gradient_checkpointing": "matmuls" if cut else False}
    config = write_config(tmp_path / "c.yaml", model=model, mesh=mesh)
    stderr = train_command(config, **EIGHT).stderr
    assert "devices     8 × cpu" in stderr
    assert "rematerialization" not in stderr  # XLA's warning that it replicates the batch
    out = tmp_path / "out"
    assert column(out, "train/loss") == pytest.approx(column(one_device, "train/loss"), abs=1e-5)
    assert column(out, "val/loss") == pytest.approx(column(one_device, "val/loss"), abs=1e-5)
    assert_same_weights(out / "final.safetensors", one_device / "final.safetensors", 1e-4)


def test_resume_on_another_mesh_and_back(one_device, tmp_path):
    """Step 3 comes from one device, 4 and 5 are made by eight, 6 by one again."""
    parts = [
        ({"num_steps": 5, "mesh": {"data": 2, "fsdp": 4}}, EIGHT, one_device / "step0000003"),
        ({"num_steps": 6}, {}, "auto"),
    ]
    for changes, env, start in parts:
        config = write_config(tmp_path / "c.yaml", model=MODEL, **changes)
        train_command(config, "--resume", str(start), **env)
    ours, whole = column(tmp_path / "out", "train/loss"), column(one_device, "train/loss")
    assert ours[0] == pytest.approx(whole[3], abs=1e-5)
    assert len(ours) == 3


def finish(processes) -> list[str]:
    stderr = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), stderr
    return stderr


def test_two_processes_train_save_and_resume(tmp_path):
    mesh = {"data": 1, "fsdp": 2}
    rate = {"type": "constant"}  # the same in a run that is to have fewer steps
    changes = {"scheduler": rate, "window_order": "shuffled"}
    whole = write_config(tmp_path / "whole/c.yaml", keep_last_n=9, mesh=mesh, **changes)
    stderr = finish(start_processes(whole))
    assert "2 × cpu in 2 processes" in stderr[0]
    assert "step 6/6" in stderr[0]
    assert "step 6/6" not in stderr[1]
    halves = write_config(tmp_path / "halves/c.yaml", mesh=mesh, **changes)
    finish(start_processes(halves, "--resume", str(tmp_path / "whole/out/step0000003")))
    assert_same_weights(
        tmp_path / "whole/out/final.safetensors", tmp_path / "halves/out/final.safetensors"
    )
    assert metrics(tmp_path / "whole/out", timeless=True)[4:] == metrics(
        tmp_path / "halves/out", timeless=True
    )
    alone = write_config(tmp_path / "alone/c.yaml", num_steps=5, **changes)
    train_command(alone, "--resume", str(tmp_path / "whole/out/step0000003"))
    back = write_config(tmp_path / "alone/c.yaml", mesh=mesh, **changes)
    finish(start_processes(back, "--resume", "auto"))  # from 2 processes to 1 and back to 2
    assert column(tmp_path / "alone/out", "train/loss") == pytest.approx(
        column(tmp_path / "halves/out", "train/loss"), abs=1e-5
    )


def test_a_bad_shard_stops_every_process(tmp_path):
    config = write_config(tmp_path / "c.yaml", train_data="nowhere")
    for process in start_processes(config):
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 2, stderr
    assert not (tmp_path / "out").exists()


def test_every_parameter_is_cut_as_the_table_says():
    """Abstractly, on a mesh of 2·2·2 that this machine need not have."""
    cfg = TrainingConfig(train_data="x", seq_len=8, model=MODEL | {"d_model": 64})
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    abstract = jax.eval_shape(lambda: init_state(cfg, init_params(cfg)))
    shardings = state_shardings(abstract, cfg.model, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    specs = {"/".join(path_names(path)): tuple(sharding.spec) for path, sharding in leaves}
    layer = "params/layers/0"
    assert specs["params/tok_emb/weight"] == ("tensor", "fsdp")
    assert specs[f"{layer}/attn/q_proj/kernel"] == ("fsdp", "tensor")
    assert specs[f"{layer}/attn/out_proj/kernel"] == ("tensor", "fsdp")
    assert specs[f"{layer}/ffn/down_proj/kernel"] == ("tensor", "fsdp")
    assert specs[f"{layer}/norm1/weight"] == ()
    assert specs["step"] == ()
    for name, spec in specs.items():  # moments lie where their parameter lies
        if "/mu/" in name:
            assert spec == specs["params/" + name.split("/mu/")[1]]
    matrices = [n for n in specs if n.startswith("params/") and n.endswith("kernel")]
    assert all("fsdp" in specs[name] and "tensor" in specs[name] for name in matrices)
    # four devices on the tensor axis would split the two kv heads: they are replicated instead
    mesh = jax.sharding.AbstractMesh((1, 2, 4), ("data", "fsdp", "tensor"))
    shardings = state_shardings(abstract, cfg.model, mesh)
    assert tuple(shardings.params["layers"][0]["attn"]["k_proj"]["kernel"].get_value().spec) == (
        "fsdp",
        None,
    )


def test_meshes_and_batches_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="does not cover the 1 devices"):
        make_mesh(MeshConfig(data=2))
    mesh = jax.sharding.AbstractMesh((2, 3, 1), ("data", "fsdp", "tensor"))
    assert batch_shards(mesh) == 6
    with pytest.raises(UserError, match=r"batch_size=8 does not divide .* use 6 or 12"):
        check_batch(8, mesh)


def test_a_mesh_that_would_split_a_head_is_told_those_that_do_not():
    sizes = {"d_model": 96, "attention": {"num_heads": 6}}
    model = TrainingConfig(train_data="x", seq_len=8, model=sizes).model
    mesh = jax.sharding.AbstractMesh((1, 2, 4), ("data", "fsdp", "tensor"))
    with pytest.raises(UserError) as error:
        check_heads(model, mesh)
    assert str(error.value) == (
        "mesh.tensor=4 does not divide model.attention.num_heads=6, and a head is never split; use "
        "{data: 2, fsdp: 2, tensor: 2} or {data: 1, fsdp: 4, tensor: 2} or "
        "{data: 4, fsdp: 2, tensor: 1}, or another num_heads"
    )
    for tensor in (1, 2):
        check_heads(model, jax.sharding.AbstractMesh((1, 1, tensor), mesh.axis_names))


def test_what_is_copied_where_it_could_be_divided_is_told():
    sizes = {
        "d_model": 94,
        "attention": {"head_dim": 8},
        "vocab_size": 50257,
        "ffn": {"ffn_dim": 255},
    }
    model = TrainingConfig(train_data="x", seq_len=8, model=sizes).model
    axes = ("data", "fsdp", "tensor")
    with pytest.warns(UserWarning, match="does not divide") as caught:
        warn_of_copies(model, jax.sharding.AbstractMesh((1, 4, 2), axes))
    assert [str(warning.message) for warning in caught] == [
        "mesh.fsdp=4 does not divide model.d_model=94, so all weights and their moments are copied "
        "along fsdp and not divided; use 96, or another mesh",
        "mesh.tensor=2 does not divide the ffn's width=255, so the ffn's weights and their moments "
        "are copied along tensor and not divided; use 256, or another mesh",
        "mesh.tensor=2 does not divide model.vocab_size=50257, so the token tables and their "
        "moments are copied along tensor and not divided; use 50258, or another mesh",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_copies(model, jax.sharding.AbstractMesh((8, 1, 1), axes))


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"batch_size": 4},
            "batch_size=4 does not divide over mesh.data · mesh.fsdp = 8 devices; use 8, or "
            "another mesh",
        ),
        (
            {"mesh": {"data": 3, "fsdp": 2}},
            "mesh={data: 3, fsdp: 2, tensor: 1} does not cover the 8 devices; their product must "
            "be that number: use {data: 4, fsdp: 2, tensor: 1} or {data: 2, fsdp: 2, tensor: 2}",
        ),
        (
            {"mesh": {"data": 1, "tensor": 8}},
            "mesh.tensor=8 does not divide model.attention.num_heads=4, and a head is never split; "
            "use {data: 2, fsdp: 1, tensor: 4} or {data: 1, fsdp: 2, tensor: 4}",
        ),
    ],
    ids=["batch", "mesh", "heads"],
)
def test_a_mesh_that_cannot_be_is_refused_with_those_that_can(tmp_path, changes, said):
    config = write_config(tmp_path / "c.yaml", **changes)
    done = command("llm-train", config, cwd=tmp_path, env=EIGHT)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
