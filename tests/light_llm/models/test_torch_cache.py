"""Decoding with a cache is the full forward pass, a few tokens at a time."""

from __future__ import annotations

import pytest
import torch
from torch_cases import DECODABLE, lively, tiny, tokens_for

from light_llm.errors import UserError
from light_llm.models.transformer.cache import Cache
from light_llm.models.transformer.mask import Span


@pytest.mark.parametrize("chunks", [[1] * 24, [9, 1, 1, 5, 8], [24]], ids=["ones", "uneven", "all"])
@pytest.mark.parametrize("name", DECODABLE)
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(name, chunks):
    model = lively(DECODABLE[name])
    tokens = tokens_for(model.cfg, 2, sum(chunks))
    cache = model.new_cache()
    logits = torch.cat([model(chunk, cache) for chunk in tokens.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DECODABLE)
@torch.no_grad()
def test_prompts_of_different_lengths_end_together(name):
    """No token sees padding: a row's logits are those of the row alone."""
    model = lively(DECODABLE[name])
    pad_B = torch.tensor([0, 3, 8])
    tokens = tokens_for(model.cfg, 3, 15)
    cache = model.new_cache(pad_B)
    chunks = tokens.split([9, 1, 1, 1, 3], dim=1)
    logits = torch.cat([model(chunk, cache) for chunk in chunks], dim=1)
    for row, pad in enumerate(pad_B):
        alone = model(tokens[row : row + 1, pad:])[0]
        torch.testing.assert_close(logits[row, pad:], alone, rtol=0, atol=1e-5)


def test_a_window_bounds_the_cache():
    """Each call gets its own keys and those in its window; the buffers stay twice as large."""
    T, W = 40, 4
    cache = Cache(Span(left=W, right=0))
    positions = torch.arange(T).reshape(1, T, 1, 1)
    for t in range(T):
        k, v = cache.extend(positions[:, t : t + 1], -positions[:, t : t + 1])
        assert k.flatten().tolist() == list(range(max(0, t - W), t + 1))
        assert torch.equal(v, -k)
        assert cache.k_BSKH.shape[1] <= 2 * (W + 1)
    assert cache.length == T
    cache.extend(*[torch.zeros(1, 600, 1, 1)] * 2)  # a long prompt is dropped at the next token
    cache.extend(*[torch.zeros(1, 1, 1, 1)] * 2)
    assert cache.k_BSKH.shape[1] == 2 * (W + 1)


def test_appending_copies_what_is_cached_rarely():
    cache = Cache(Span(left=None, right=0))
    buffers = set()
    for _ in range(1000):
        cache.extend(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        buffers.add(cache.k_BSKH.data_ptr())
    assert len(buffers) <= 10  # 2, 6, 14, … rows


@torch.no_grad()
def test_cached_tokens_count_towards_max_seq_len():
    model = lively(tiny(max_seq_len=8))
    cache = model.new_cache()
    model(tokens_for(model.cfg, 1, 6), cache)
    with pytest.raises(ValueError, match="9 tokens exceed max_seq_len=8"):
        model(tokens_for(model.cfg, 1, 3), cache)


def test_a_bidirectional_model_has_no_cache():
    model = lively(tiny(attention={"mask_type": "bidirectional"}))
    with pytest.raises(UserError, match="mask_type='bidirectional' sees the future"):
        model.new_cache()
