"""Work in threads, a few items ahead of who takes the results, which come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from light_llm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """`map` in threads, which are at most one item ahead of the caller each, and one more.

    An error of `items` comes after the results of those before it.
    """
    pool = ThreadPoolExecutor(threads)
    running: deque[Future[Result]] = deque()
    failure: UserError | None = None
    source = iter(items)
    try:
        while failure is None:
            try:
                item = next(source)
            except StopIteration:
                break
            except UserError as error:
                failure = error
            else:
                running.append(pool.submit(work, item))
                if len(running) > threads + 1:
                    yield running.popleft().result()
        while running:
            yield running.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
