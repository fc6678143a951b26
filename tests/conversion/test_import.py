"""Models of Hugging Face, imported or read in their folders: equal bits, equal logits and text."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from foreign_models import CASES, save_model
from safetensors import safe_open

from conversion import load_jax, load_torch
from conversion.families import hf_key, hf_keys, our_key
from conversion.import_hf import import_model
from light_llm.checkpoint.digests import verify
from light_llm.checkpoint.reading import model_config, read_checkpoint

torch = pytest.importorskip("torch")
PROMPT = [5, 17, 100, 3, 64]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """case -> (its folder, the model of transformers in float32); each is made when it is asked."""
    made = {}
    root = tmp_path_factory.mktemp("models")

    def get(case):
        if case not in made:
            made[case] = (root / case, save_model(root / case, case))
        return made[case]

    return get


def stored(paths):
    """key -> (type, shape, bytes) over several files."""
    found = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                raw = tensor.view(torch.uint8).numpy().tobytes() if tensor.dim() else b""
                found[key] = (tensor.dtype, tuple(tensor.shape), raw)
    return found


@pytest.mark.parametrize("case", CASES)
def test_an_import_renames_and_keeps_every_bit(case, models, tmp_path):
    folder, _ = models(case)
    import_model(str(folder), str(tmp_path / "out"))
    ours, theirs = stored([tmp_path / "out.safetensors"]), stored(folder.glob("*.safetensors"))
    checkpoint = read_checkpoint(tmp_path / "out")
    verify(checkpoint)
    assert checkpoint.record.files.keys() == {".safetensors"}
    names = hf_keys(model_config(checkpoint))
    assert ours.keys() == names.keys()
    assert theirs.keys() == set(names.values())
    assert all(ours[key] == theirs[name] for key, name in names.items())
    assert all(our_key(name) == key and hf_key(key) == name for key, name in names.items())


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_text_are_those_of_transformers(case, models, tmp_path):
    from light_jax.generate import generate as generate_jax
    from light_llm.generate import generate
    from light_llm.sampling import Sampling

    folder, model = models(case)
    import_model(str(folder), str(tmp_path / "out"))
    tokens = np.random.default_rng(0).integers(131, size=(2, 90))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
        written = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=50, do_sample=False, eos_token_id=None
        )[0, len(PROMPT) :].tolist()
    assert len(written) == 50
    twin, direct = load_torch(tmp_path / "out"), load_torch(folder)
    with torch.no_grad():
        logits = [each(torch.tensor(tokens)).numpy() for each in (twin, direct)]
    in_jax = load_jax(folder)
    logits.append(np.asarray(in_jax(jnp.asarray(tokens, jnp.int32))))
    for each in logits:
        np.testing.assert_allclose(each, expected, rtol=0, atol=2e-5)
    greedy = Sampling(max_tokens=50, temperature=0.0)
    assert list(generate(twin, PROMPT, greedy)) == written
    assert list(generate_jax(in_jax, PROMPT, greedy)) == written


def test_a_folder_and_its_import_are_the_same_model_in_jax(models, tmp_path):
    import jax
    from flax import nnx

    folder, _ = models("qwen2")
    import_model(str(folder), str(tmp_path / "out"))
    ours, theirs = (nnx.split(load_jax(at), nnx.Param)[1] for at in (tmp_path / "out", folder))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
