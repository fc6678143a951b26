"""The shuffled order of an epoch's windows: integer arithmetic alone, the same bits everywhere.

An epoch is cut into runs of windows that follow each other. The runs are permuted, a few of them in
that order make a pool, and the windows of a pool are permuted again.

    windows    |  run 0  |  run 1  |  run 2  |  run 3  |  run 4  |  run 5  | tail |
    the runs   |    4         0    |    3         5    |    1         2       tail |
    the order  |  windows of 4, 0  |  windows of 3, 5  |  windows of 1, 2, tail    |   three pools

So neighbours in the text come far apart, and yet a pool is read from a few stretches of the shards.
"""

from __future__ import annotations

import math

import numpy as np

RUN_TOKENS = 2**22
POOL_RUNS = 8
ROUNDS = 8


class ShuffledOrder:
    """Which window of its epoch comes at which position: a function of seed, epoch, W and S.

    Each of the W windows comes once an epoch. Nothing is carried from one position to the next.
    """

    def __init__(self, seed: int, num_windows: int, seq_len: int) -> None:
        self._seed = seed
        self._run = min(num_windows, max(1, RUN_TOKENS // seq_len))  # windows
        self._num_runs = num_windows // self._run
        self._num_windows = num_windows
        self.num_pools = -(-self._num_runs // POOL_RUNS)

    def pool(self, number: int) -> range:
        """The positions of a pool: those of at most POOL_RUNS runs, and in the last the tail."""
        first, stop = (
            n * self._num_runs // self.num_pools * self._run for n in (number, number + 1)
        )
        return range(first, self._num_windows if number == self.num_pools - 1 else stop)

    def pool_of(self, positions: np.ndarray) -> np.ndarray:
        """The number of the pool that a position lies in: the inverse of `pool`."""
        runs = np.minimum(positions // self._run, self._num_runs - 1)
        return ((runs + 1) * self.num_pools - 1) // self._num_runs

    def windows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The windows of an epoch at these positions: int64 [n] -> int64 [n], both in 0..W-1."""
        windows, pools = np.empty_like(positions), self.pool_of(positions)
        for number in np.unique(pools).tolist():
            here, pool = pools == number, self.pool(number)
            key = _key(self._seed, epoch, number + 1)
            places = permute(len(pool), key, positions[here] - pool.start) + pool.start
            runs, within = np.divmod(places, self._run)
            whole = runs < self._num_runs  # the tail stays where it is
            runs[whole] = permute(self._num_runs, _key(self._seed, epoch, 0), runs[whole])
            windows[here] = runs * self._run + within
        return windows


def permute(size: int, key: int, numbers: np.ndarray) -> np.ndarray:
    """The images of `numbers` under a permutation of 0..size-1 that `key` chooses: int64 [n].

    A Feistel network: a number is two digits (of bases that hardly differ, so that their product is
    hardly more than `size`), and each digit in turn is shifted by a hash of the other. An image
    beyond `size` is taken as a number again, until it is below (Black and Rogaway 2002).
    """
    if size < 2:
        return numbers.copy()
    high = math.isqrt(size - 1) + 1
    low = -(-size // high)
    images, beyond = numbers.astype(np.uint64), np.ones(len(numbers), bool)
    while beyond.any():
        images[beyond] = _rounds(images[beyond], key, np.uint64(high), np.uint64(low))
        beyond = images >= size
    return images.astype(np.int64)


def _rounds(numbers: np.ndarray, key: int, high: np.uint64, low: np.uint64) -> np.ndarray:
    left: np.ndarray = numbers // low
    right: np.ndarray = numbers % low
    for number in range(0, ROUNDS, 2):
        left = (left + _hash(right, _key(key, number)) % high) % high
        right = (right + _hash(left, _key(key, number + 1)) % low) % low
    return left * low + right


def _hash(numbers: np.ndarray, key: int) -> np.ndarray:
    """The finaliser of splitmix64, on uint64, which wraps."""
    x = numbers ^ np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*numbers: int) -> int:
    """A key of 64 bits from any numbers, in this order."""
    key = 0
    for number in numbers:
        mixed = np.array([(key + 0x9E3779B97F4A7C15 + number) % 2**64], np.uint64)
        key = int(_hash(mixed, 0)[0])
    return key
