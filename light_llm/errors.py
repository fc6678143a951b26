"""The errors that end a command, the exit code of each, and the message of any other error."""

import contextlib
from collections.abc import Iterator
from typing import Any


class UserError(Exception):
    """A config, dataset, checkpoint or argument that cannot be used (exit code 2).

    The message is complete as it stands: it names the field or file, its value, the rule and the
    remedy. The command lines print it without a traceback.
    """


class IllegalConfig(UserError):
    """A config file that parses and breaks rules.

    `problems` are pairs (key, what is wrong with it); the message has a line for each.
    """

    def __init__(self, source: object, problems: list[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for _, problem in problems))
        self.problems = problems


class NonFinite(Exception):
    """The loss or the gradients stopped being finite (exit code 3)."""

    def __init__(self, message: str, step: int, metrics: Any) -> None:
        super().__init__(message)
        self.step, self.metrics = step, metrics  # the step from 0


def one_line(error: BaseException, limit: int = 500) -> str:
    """The first `limit` characters of an error's message on one line; its type if it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]


_NO_MEMORY = ("resource_exhausted", "out of memory", "bad_alloc", "can't allocate memory")
"""As XLA, its allocators, C++ and PyTorch word it, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that a device, or the machine, had not enough memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)


@contextlib.contextmanager
def with_earlier(failure: UserError | None) -> Iterator[None]:
    """Raise an error inside together with the failure that came before it."""
    try:
        yield
    except UserError as error:
        if failure is None:
            raise
        raise UserError(f"{failure}\n{error}") from None
