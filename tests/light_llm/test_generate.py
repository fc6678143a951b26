"""Generation: greedy by recomputation, sampling by hand, and where it ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_cases import DECODABLE, lively, tiny, tokens_for

from light_llm.errors import UserError
from light_llm.generate import choose, generate, generate_batch, keep_top_k, keep_top_p, penalize
from light_llm.sampling import Sampling

PROMPT = [3, 1, 4, 1, 5]
RAGGED = [PROMPT, [2], [7, 1, 8, 2, 8, 1, 8], [6, 2]]


def written(model, prompt, max_tokens, eos_id=None, **how) -> list[int]:
    return list(generate(model, prompt, Sampling(max_tokens, **how), eos_id))


def columns(rows) -> list[list[int]]:
    """What a batch wrote, by prompt."""
    return [[id for id in column if id is not None] for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", DECODABLE)
def test_greedy_is_the_argmax_of_the_full_forward(name):
    model = lively(DECODABLE[name])
    rows = columns(generate_batch(model, RAGGED, Sampling(12, temperature=0)))
    for prompt, row in zip(RAGGED, rows, strict=True):
        ids = prompt + row
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0]
        assert row == logits.argmax(dim=-1)[len(prompt) - 1 : -1].tolist()


def test_a_seed_gives_the_same_ids_and_leaves_torch_alone():
    model = lively(tiny())
    before = torch.get_rng_state()
    first, again, other = (written(model, PROMPT, 20, seed=seed) for seed in (7, 7, 8))
    assert first == again != other
    assert written(model, PROMPT, 20) != first
    assert torch.equal(torch.get_rng_state(), before)


def test_ids_come_one_by_one():
    stream = generate(lively(tiny()), PROMPT, Sampling(20, seed=0))
    early = [next(stream) for _ in range(3)]
    assert early + list(stream) == written(lively(tiny()), PROMPT, 20, seed=0)


def test_it_ends_before_eos():
    model = lively(tiny())
    ids = written(model, PROMPT, 20, seed=0)
    eos = ids[6]
    ended = written(model, PROMPT, 20, seed=0, eos_id=eos)
    assert ended == ids[: ids.index(eos)]


def test_a_row_is_written_as_if_it_were_alone():
    """Each row draws and ends independently; a row that has ended gives None."""
    model = lively(tiny(max_seq_len=16))
    alone = written(model, PROMPT, 30, seed=5)
    rows = list(generate_batch(model, RAGGED, Sampling(30, seed=5)))
    assert [row[0] for row in rows if row[0] is not None] == alone
    assert [len(column) for column in columns(rows)] == [16 - len(prompt) for prompt in RAGGED]
    eos = columns(rows)[3][4]
    ended = columns(generate_batch(model, RAGGED, Sampling(30, seed=5), eos))
    for column, whole in zip(ended, columns(rows), strict=True):
        assert column == (whole[: whole.index(eos)] if eos in whole else whole)


def test_it_ends_when_max_seq_len_is_full():
    model = lively(tiny(max_seq_len=9, positional={"encoding": "learned"}))
    assert len(written(model, PROMPT, 100, seed=0)) == 9 - len(PROMPT)


def test_dropout_is_off_during_generation_and_the_mode_is_restored():
    model = lively(tiny(dropout=0.5)).train()
    ids = written(model, PROMPT, 9, temperature=0)
    assert model.training
    assert ids == written(model.eval(), PROMPT, 9, temperature=0)
    assert not model.training


@pytest.mark.parametrize(
    "argument, message",
    [
        ({"max_tokens": 0}, "max_tokens=0 must be 1 or more"),
        ({"temperature": -0.1}, "temperature=-0.1 must be 0"),
        ({"temperature": 1e-9}, "temperature=1e-09 must be 0"),
        ({"temperature": math.nan}, "temperature=nan must be 0"),
        ({"top_k": 0}, "top_k=0 must be 1 or more; leave it out"),
        ({"top_p": 0.0}, r"top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.1}, r"top_p=1.1 must be above 0 and at most 1"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty=1e-300 must be from 0.01"),
        ({"seed": -1}, "seed=-1 must be from 0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(argument, message):
    with pytest.raises(UserError, match=message):
        Sampling(**{"max_tokens": 5, **argument})


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([], "the prompt is empty"),
        ([3, 31], "token id 31, outside the model's vocab_size=31"),
        ([3, -1], "token id -1"),
        ([1] * 48, "48 tokens leave no room in the model's max_seq_len=48; shorten it to 47"),
        ([1] * 60, "60 tokens leave no room"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused_at_once(prompt, message):
    with pytest.raises(UserError, match=message):
        generate(lively(tiny()), prompt, Sampling(5))


def test_a_bidirectional_model_is_refused():
    model = lively(tiny(attention={"mask_type": "bidirectional"}))
    with pytest.raises(UserError, match="cannot write text token by token"):
        generate(model, PROMPT, Sampling(5))


def test_broken_weights_are_named():
    model = lively(tiny())
    torch.nn.init.constant_(model.final_norm.weight, math.nan)
    with pytest.raises(UserError, match="logits are not finite"):
        written(model, PROMPT, 5)


PROBS = torch.tensor([0.1, 0.4, 0.2, 0.3])
LOGITS = PROBS.log() + 2.5  # logits are probabilities up to a constant
NEVER = -math.inf


def drawn(**how) -> list[float]:
    """How often each of 4 ids came in 4000 draws."""
    draws = Sampling(1, seed=0).draws(4000)
    seen = torch.zeros(4000, 4, dtype=torch.bool)
    ids = choose(LOGITS.expand(4000, 4), seen, next(draws), Sampling(1, **how))
    return [(ids == id).double().mean().item() for id in range(4)]


def test_sampling_frequencies():
    assert drawn() == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.03)
    assert drawn(temperature=0) == [0, 1, 0, 0]
    assert drawn(temperature=1e-3) == [0, 1, 0, 0]
    # temperature ½ squares the odds: 1 : 16 : 4 : 9
    assert drawn(temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30], abs=0.03)
    assert drawn(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)
    assert drawn(top_p=0.8) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9], abs=0.03)
    # top_p is of what temperature and top_k leave: 4/7 alone reaches ½, 16/30 too
    assert drawn(top_k=2, top_p=0.5) == [0, 1, 0, 0]
    assert drawn(temperature=0.5, top_p=0.5) == [0, 1, 0, 0]


def test_top_k_keeps_exactly_k():
    assert keep_top_k(torch.tensor([1.0, 3.0, 2.0]), 2).tolist() == [NEVER, 3, 2]
    assert keep_top_k(torch.tensor([1.0, 3.0, 2.0]), 9).tolist() == [1, 3, 2]
    assert keep_top_k(torch.zeros(5), 2).isfinite().sum() == 2


@pytest.mark.parametrize(
    "p, kept", [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    expected = [LOGITS[id].item() if id in kept else NEVER for id in range(4)]
    assert keep_top_p(LOGITS, p).tolist() == expected


def test_draws_choose_by_cumulated_probability():
    """0.1 | 0.4 | 0.2 | 0.3, and an id without probability is never chosen."""
    sure = torch.tensor([[NEVER, 2.0, NEVER]])
    nothing_seen = torch.zeros(1, 4, dtype=torch.bool)
    for draw, id in [(0.0, 0), (0.09, 0), (0.11, 1), (0.49, 1), (0.51, 2), (0.71, 3), (0.999, 3)]:
        draw_B = np.array([draw], np.float32)
        assert choose(LOGITS[None], nothing_seen, draw_B, Sampling(1)).tolist() == [id]
        assert choose(sure, nothing_seen[:, :3], draw_B, Sampling(1)).tolist() == [1]


def test_repetition_penalty_by_hand():
    logits = torch.tensor([[2.0, -2.0, 0.0, 3.0, -1.0]])
    seen = torch.tensor([[True, True, True, False, False]])
    assert penalize(logits, seen, 2.0).tolist() == [[1.0, -4.0, 0.0, 3.0, -1.0]]
    assert penalize(logits, seen, 1.0).tolist() == logits.tolist()


def test_a_strong_repetition_penalty_forbids_repetition():
    model = lively(tiny())
    tokens = tokens_for(model.cfg, 1, 2)[0].tolist()
    with torch.no_grad():
        model.lm_head.weight.mul_(9)
    ids = written(model, tokens, 8, temperature=0, repetition_penalty=100)
    assert len({*tokens, *ids}) == len({*tokens}) + len(ids)
