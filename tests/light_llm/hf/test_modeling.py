"""Our class in transformers: what its users expect of any causal language model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hf_exports import CONTEXT, OWN, exported, loaded
from tiny_runs import ROOT
from torch_cases import DOCUMENTS, lively, tiny, tokens_for
from transformers import AutoConfig

from light_llm.errors import UserError
from light_llm.generate import generate_batch
from light_llm.hf import LightLLMConfig, LightLLMForCausalLM
from light_llm.hf.check import quietly
from light_llm.sampling import Sampling

SHORT, LONG = 5, 12
GREEDY = Sampling(20, temperature=0)


def in_transformers(cfg) -> LightLLMForCausalLM:
    """A model of this config whose weights show in the logits."""
    model = LightLLMForCausalLM(LightLLMConfig(cfg.model_dump())).eval()
    model.model.load_state_dict(lively(cfg).state_dict())
    return model


@pytest.fixture(params=OWN)
def model(request) -> LightLLMForCausalLM:
    return in_transformers(OWN[request.param])


def padded(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first row cut to SHORT tokens and padded on the left, and the mask."""
    ids = tokens.clone()
    ids[0] = torch.cat([ids.new_zeros(LONG - SHORT), ids[0, :SHORT]])
    mask = torch.ones_like(ids)
    mask[0, : LONG - SHORT] = 0
    return ids, mask


@pytest.mark.parametrize(
    "how", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}], ids=["greedy", "beams"]
)
def test_a_batch_with_left_padding_writes_what_its_rows_write_alone(model, how):
    tokens = tokens_for(model.model.cfg, 2, LONG)
    ids, mask = padded(tokens)
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=20, **how)
    for prompt, row in [(tokens[:1, :SHORT], batch[0]), (tokens[1:], batch[1])]:
        alone = model.generate(prompt, max_new_tokens=20, **how)[0, prompt.shape[1] :]
        assert row[LONG:].tolist() == alone.tolist()


def test_the_cache_changes_nothing(model):
    ids = tokens_for(model.model.cfg, 2, LONG)
    for how in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}):
        with_cache, without = (
            model.generate(ids, max_new_tokens=20, use_cache=use, **how) for use in (True, False)
        )
        assert torch.equal(with_cache, without)


def test_sampling_gives_as_many_texts_as_asked():
    model = in_transformers(tiny(positional={"encoding": "alibi"}))
    torch.manual_seed(0)
    texts = model.generate(
        tokens_for(model.model.cfg, 2, 4), do_sample=True, num_return_sequences=3, max_new_tokens=9
    )
    assert texts.shape == (6, 13)
    assert len({tuple(row.tolist()) for row in texts}) == 6


def test_labels_give_the_cross_entropy_of_the_next_token(model):
    ids = tokens_for(model.model.cfg, 2, LONG)
    labels = ids.clone()
    labels[0, :4] = -100
    output = model(ids, labels=labels)
    wanted = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, wanted)
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, output.logits[:, -1:])


@pytest.mark.parametrize("encoding", ["alibi", "learned"])
@pytest.mark.parametrize("before, after", [(3, 0), (0, 3), (2, 1)])
def test_padding_changes_no_logit_of_a_token_and_no_loss(encoding, before, after):
    model = in_transformers(tiny(positional={"encoding": encoding}))
    ids = tokens_for(model.model.cfg, 1, 9)
    batch, mask = F.pad(ids, (before, after)), F.pad(torch.ones_like(ids), (before, after))
    labels = batch.masked_fill(mask == 0, -100)
    labels[0, before] = -100  # padding would predict it
    output = model(batch, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.logits[mask.bool()], model(ids).logits[0])
    torch.testing.assert_close(output.loss, model(ids, labels=ids).loss)


def test_gradient_checkpointing_is_switched_and_changes_no_gradient():
    model = in_transformers(tiny(positional={"encoding": "alibi"})).train()
    ids = tokens_for(model.model.cfg, 2, LONG)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return model.model.layers[0].attn.q_proj.weight.grad.clone()

    plain = gradient()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    torch.testing.assert_close(gradient(), plain)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_was_saved_is_loaded_as_it_was(tmp_path, tied):
    model = in_transformers(tiny(tie_embeddings=tied, positional={"encoding": "none"}))
    model.save_pretrained(tmp_path)
    again = loaded(tmp_path)
    ids = tokens_for(model.model.cfg, 2, LONG)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert (again.model.lm_head.weight is again.model.tok_emb.weight) == tied
    assert (
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=False).transformer
        == model.config.transformer
    )
    again.resize_token_embeddings(model.model.cfg.vocab_size + 9, mean_resizing=False)
    again.save_pretrained(tmp_path / "larger")
    larger = loaded(tmp_path / "larger")
    assert larger.config.vocab_size == model.model.cfg.vocab_size + 9
    assert torch.equal(larger(ids).logits[..., :-9], model(ids).logits)


def test_a_bidirectional_model_computes_and_does_not_write(tmp_path):
    cfg = tiny(attention={"mask_type": "bidirectional"})
    ours, theirs = exported(tmp_path, cfg)
    ids, mask = padded(tokens_for(cfg, 2, LONG))
    short = ids[:1, LONG - SHORT :]
    torch.testing.assert_close(theirs(short).logits, ours(short))
    rows = theirs(ids, attention_mask=mask).logits[0, LONG - SHORT :]
    torch.testing.assert_close(rows, ours(short)[0])
    with pytest.raises(UserError, match="sees the future"):
        theirs.generate(ids, max_new_tokens=3)


def test_documents_are_masked_in_any_batch_and_without_a_cache():
    model = in_transformers(tiny(attention=DOCUMENTS, positional={"encoding": "learned"}))
    tokens = tokens_for(model.model.cfg, 2, LONG)
    tokens[0, 2] = tokens[1, 4] = tokens[1, 5] = DOCUMENTS["document_end"]
    ids, mask = padded(tokens)
    logits = model(ids, attention_mask=mask).logits
    for prompt, found in [(tokens[:1, :SHORT], logits[:1, -SHORT:]), (tokens[1:], logits[1:])]:
        torch.testing.assert_close(found, model.model(prompt))
    texts = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    rows = generate_batch(model.model, [tokens[0, :SHORT].tolist(), tokens[1].tolist()], GREEDY)
    assert texts[:, LONG:].T.tolist() == [list(step) for step in rows]
    with pytest.raises(ValueError, match="document_mask=True: a cache of transformers holds no"):
        model(ids, use_cache=True)
    mask[1, 3] = 0
    with pytest.raises(ValueError, match="attention_mask has padding between tokens"):
        model(ids, attention_mask=mask)


def test_what_it_cannot_do_is_refused():
    model = in_transformers(tiny(positional={"encoding": "alibi"}, max_seq_len=CONTEXT))
    ids = tokens_for(model.model.cfg, 1, LONG)
    with pytest.raises(ValueError, match="position_ids: this model takes"):
        model(ids, position_ids=ids)
    with pytest.raises(ValueError, match=r"attention_mask has shape \[1, 3\]; it must be"):
        model(ids, attention_mask=ids[:, :3])
    with pytest.raises(ValueError, match=f"exceed max_seq_len={CONTEXT}"):
        model.generate(ids, max_new_tokens=CONTEXT, do_sample=False)
    with pytest.raises(UserError, match="num_layers=0"):
        LightLLMConfig({"num_layers": 0})


REMOTE = """
import sys
from transformers import AutoModelForCausalLM
sys.modules["light_llm"] = None  # as if it were not installed
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    print(error)
del sys.modules["light_llm"]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__module__, type(model).__name__)
"""


def test_the_code_in_the_folder_finds_the_class_or_says_what_to_install(tmp_path):
    exported(tmp_path, OWN["alibi-window"])
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "out")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refusal, loaded_as = done.stdout.splitlines()
    assert "pip install 'light-llm-jax[torch]'" in refusal
    assert loaded_as == "light_llm.hf.modeling LightLLMForCausalLM"


def test_the_folder_says_how_it_is_loaded(tmp_path):
    with quietly():
        exported(tmp_path, OWN["complex"])
    card = Path(tmp_path, "out/README.md").read_text()
    assert "import light_llm.hf" in card
    assert "trust_remote_code=True" in card
    assert "pip install 'light-llm-jax[torch]'" in card
