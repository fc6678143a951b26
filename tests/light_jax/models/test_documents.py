"""A document mask: each document of a row is computed as if it were alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from architectures import DOCUMENTS, build, lively_params, tiny
from flax import nnx

from light_jax.models.transformer import Transformer
from light_llm.errors import UserError
from light_llm.models.transformer.config import TransformerConfig

pytestmark = pytest.mark.compiled_fully

LENGTHS = (140, 1, 130, 29)  # blocks of 128 queries cut them; one is its end mark alone
ENDS = np.cumsum(LENGTHS)


def packed(cfg: TransformerConfig, seed: int) -> np.ndarray:
    """A row of documents of LENGTHS, each with its end mark, but for the last."""
    rng = np.random.default_rng(seed)
    tokens_T = rng.integers(1, cfg.vocab_size, size=ENDS[-1], dtype="int32")
    tokens_T[ENDS[:-1] - 1] = cfg.attention.document_end
    return tokens_T


@pytest.mark.parametrize(
    "attention, encoding",
    [
        ({"variant": "gqa"}, "rope"),
        ({"variant": "complex"}, "alibi"),
        ({"variant": "mqa", "mask_type": "sliding_window", "window_size": 20}, "learned"),
    ],
)
def test_packed_documents_have_the_logits_of_each_alone(attention, encoding):
    plain = tiny(
        max_seq_len=300, attention=attention, positional={"encoding": encoding}, num_layers=1
    )
    masked = tiny(plain.model_dump(exclude_none=True), DOCUMENTS)
    params, tokens_T = lively_params(masked), packed(masked, 0)
    together_TV = jax.jit(lambda params: build(masked, params)(tokens_T[None])[0])(params)
    # each at the start of a row: what comes behind is not seen
    alone_BT = np.zeros((len(LENGTHS), max(LENGTHS)), np.int32)
    for row, (end, length) in enumerate(zip(ENDS, LENGTHS, strict=True)):
        alone_BT[row, :length] = tokens_T[end - length : end]
    alone_BTV = jax.jit(lambda params: build(plain, params)(alone_BT))(params)
    for row, (end, length) in enumerate(zip(ENDS, LENGTHS, strict=True)):
        np.testing.assert_allclose(
            together_TV[end - length : end], alone_BTV[row, :length], rtol=0, atol=5e-5
        )


@pytest.mark.parametrize("mask_type", ["causal", "bidirectional"])
def test_other_documents_change_no_bit(mask_type):
    cfg = tiny(DOCUMENTS, max_seq_len=300, num_layers=1, attention={"mask_type": mask_type})
    params = lively_params(cfg)
    logits = jax.jit(lambda tokens_T: build(cfg, params, "bfloat16")(tokens_T[None])[0])
    one_T, other_T = packed(cfg, 0), packed(cfg, 1)
    third = slice(ENDS[1], ENDS[2])
    other_T[third] = one_T[third]
    assert (one_T != other_T).mean() > 0.5
    np.testing.assert_array_equal(logits(one_T)[third], logits(other_T)[third])


def test_a_model_without_an_end_mark_is_refused():
    for changes, message in [
        ({"document_end": None}, "document_mask=True needs the id of the token that ends"),
        ({"document_end": 31}, "document_end=31 must be below model.vocab_size=31"),
    ]:
        cfg = tiny(DOCUMENTS, attention=changes)
        with pytest.raises(UserError, match=message):
            nnx.eval_shape(lambda cfg=cfg: Transformer(cfg, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match="document_end=3 has no effect"):
        tiny(attention={"document_end": 3})
