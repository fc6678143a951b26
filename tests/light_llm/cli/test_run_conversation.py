"""llm-run --interactive: a line is continued after all that stands before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import Ended, call
from run_cases import save_checkpoint

from light_llm.cli.run import main

FLAGS = ("--seed", 3, "--max-tokens", 5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    model = {"vocab_size": 40, "max_seq_len": 48}
    return save_checkpoint(tmp_path_factory.mktemp("talk"), model=model)


def talk(checkpoint: Path, typed: str, *flags: object) -> Ended:
    done = call(main, checkpoint, "--interactive", *FLAGS, *flags, input=typed)
    assert done.exit_code == 0, done.stderr
    return done


def alone(checkpoint: Path, prompt: str, *flags: object) -> str:
    """The prompt and what follows it, without the end of line."""
    done = call(main, checkpoint, *FLAGS, *flags, "--prompt", prompt)
    assert done.exit_code == 0, done.stderr
    return done.stdout.removesuffix("\n")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_line_is_continued_after_all_before_it(checkpoint, backend):
    on = ("--backend", backend)
    first = alone(checkpoint, "the cat", *on)
    both = alone(checkpoint, f"{first}\nthe dog", *on)
    second = both.removeprefix(f"{first}\n")
    assert second.startswith("the dog")
    done = talk(checkpoint, "the cat\n\nthe dog\n", *on)
    assert done.stdout == f"{first}\n{second}\n\n"


def test_a_prompt_of_the_command_line_is_the_first_line(checkpoint):
    typed = talk(checkpoint, "the cat\nthe dog\n")
    assert talk(checkpoint, "the dog\n", "--prompt", "the cat").stdout == typed.stdout


def test_reset_forgets(checkpoint):
    done = talk(checkpoint, "the cat\n /reset\nthe dog\n")
    assert done.stdout == f"{alone(checkpoint, 'the cat')}\n{alone(checkpoint, 'the dog')}\n\n"
    assert "what stands before is forgotten" in done.stderr


def test_the_oldest_turns_make_room_and_it_is_said(checkpoint):
    """48 tokens: three turns of up to 12 and the ends of lines leave no room for a fourth."""
    lines = ["the cat", "the dog", "the mat", "the log"]
    done = talk(checkpoint, "".join(f"{line}\n" for line in lines))
    turns = done.stdout.removesuffix("\n\n").split("\n")
    assert len(turns) == 4
    told = "the oldest 1 of 3 turns are forgotten, since max_seq_len=48 has no room for them"
    assert told in done.stderr
    context = "\n".join([*turns[1:3], "the log"])
    assert alone(checkpoint, context) == "\n".join(turns[1:])


def test_a_line_that_is_refused_leaves_the_conversation_as_it_was(checkpoint):
    done = talk(checkpoint, f"the cat\n{'the' * 17}\nthe dog\n")
    assert "51 tokens leave no room" in done.stderr
    assert done.stdout == talk(checkpoint, "the cat\nthe dog\n").stdout


def test_one_checkpoint_is_named(checkpoint):
    for given in ((), (checkpoint, "--checkpoint", checkpoint)):
        done = call(main, *given, "--prompt", "the")
        assert done.exit_code == 2
        assert "give one: llm-run PREFIX --prompt TEXT" in done.stderr
    assert alone(checkpoint, "the") == call(
        main, "--checkpoint", checkpoint, *FLAGS, "--prompt", "the"
    ).stdout.removesuffix("\n")
