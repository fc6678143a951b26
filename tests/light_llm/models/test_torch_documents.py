"""A document mask in PyTorch: each document of a row is computed as if it were alone."""

from __future__ import annotations

import pytest
import torch
from torch_cases import DOCUMENTS, WINDOW, lively, tiny, tokens_for

from light_llm.errors import UserError
from light_llm.models.transformer import Transformer

MASKS = {"causal": {}, "bidirectional": {"mask_type": "bidirectional"}, "window": WINDOW}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("encoding", ["rope", "alibi", "sinusoidal", "learned", "none"])
@torch.no_grad()
def test_packed_documents_have_the_logits_of_each_alone(encoding, mask):
    plain = tiny(positional={"encoding": encoding}, attention=MASKS[mask])
    masked = tiny(positional={"encoding": encoding}, attention=MASKS[mask] | DOCUMENTS)
    row_T = tokens_for(masked, 1, 40)[0]
    ends = (row_T == DOCUMENTS["document_end"]).nonzero().flatten() + 1
    assert len(ends) > 4
    together_TV = lively(masked)(row_T[None])[0]
    alone = lively(plain)
    alone_TV = torch.cat([alone(part[None])[0] for part in row_T.tensor_split(ends) if len(part)])
    torch.testing.assert_close(together_TV, alone_TV, rtol=0, atol=1e-5)


@torch.no_grad()
def test_other_documents_change_no_bit():
    cfg = tiny(attention=DOCUMENTS)
    model, one_T = lively(cfg), tokens_for(cfg, 1, 40)[0]
    first, last = (one_T == 0).nonzero().flatten()[[1, 3]]
    other_T = torch.where(one_T == 0, 0, 31 - one_T)
    own = slice(first + 1, last + 1)
    other_T[own] = one_T[own]
    assert torch.equal(model(one_T[None])[0, own], model(other_T[None])[0, own])


def test_a_model_without_an_end_mark_is_refused():
    with pytest.raises(UserError, match="document_mask=True needs the id of the token that ends"):
        Transformer(tiny(attention={"document_mask": True}))
    with pytest.raises(UserError, match="document_end=31 must be below"):
        Transformer(tiny(attention=DOCUMENTS | {"document_end": 31}))
