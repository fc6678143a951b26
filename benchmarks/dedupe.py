"""How long --dedupe compares the hashes of a large input. Usage:

python benchmarks/dedupe.py [--documents 1e10]

Of the 2^8 files of hashes one is made, as large as it would be, of random hashes and a tenth of
copies, and compared: seconds, the bytes that were read and written, and the most memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from light_llm.preprocess.dedupe import AT_ONCE, BITS, HASHED, _copies_in


def write_hashes(path: Path, count: int) -> None:
    draw, before = np.random.default_rng(0), np.empty(0, HASHED)
    with path.open("wb") as file:
        for start in range(0, count, AT_ONCE):
            records = np.empty(min(AT_ONCE, count - start), HASHED)
            records["high"] = draw.integers(2 ** (64 - BITS), size=len(records), dtype=np.uint64)
            records["low"] = records["high"]
            copies = before[: len(records) // 10]
            for half in ("high", "low"):
                records[half][: len(copies)] = copies[half]
            records["ordinal"] = np.arange(start, start + len(records))
            file.write(records.tobytes())
            before = records


def bytes_moved() -> tuple[int, int]:
    """What this process has read and written so far, from the disk or its cache."""
    read, written = Path("/proc/self/io").read_text().splitlines()[:2]
    return int(read.split()[1]), int(written.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=float, default=1e10)
    count = int(parser.parse_args().documents) >> BITS
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hashes")
        write_hashes(path, count)
        size, before, began = path.stat().st_size, bytes_moved(), time.perf_counter()
        found = sum(len(places) for places in _copies_in(path, Path(folder, "ranges")))
        seconds = time.perf_counter() - began
        read, written = (now - then for now, then in zip(bytes_moved(), before, strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"a file of {count:,} hashes, {size / 1e6:,.0f} MB, {found:,} copies: {seconds:.1f} s")
    print(f"read {read / size:.2f} times, written {written / size:.2f} times, {memory:.0f} MB")
    print(f"all 2^{BITS} files: {2**BITS * seconds / 3600:.1f} hours")


if __name__ == "__main__":
    main()
