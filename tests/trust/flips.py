"""Flipped bits and torn bytes in every file that is read, each read by the product's own readers.

    python tests/trust/flips.py --flips 2000 --seed 0
    python tests/trust/flips.py --seed 0 --case 17       # one again, with what it said

A base of real files is made once: shards, manifest and tokenizer by llm-preprocess, a checkpoint by
llm-train. Each case changes one file of a copy, two times of three by one bit, and reads it in a
process of its own. It must end in a `UserError` that names the file, or in exactly what the whole
file gives. A traceback, a signal, a hang, more memory than its bound, and other tokens, weights or
settings without a word are failures. flip_readers.py says which files a checksum covers, and what
may differ where none does. fuzz.py does the same to whole commands, and more than bytes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_base
import fuzz_case
from flip_readers import KINDS, Kind, Read, digest
from fuzz import ROOT, imports
from fuzz_case import Limits
from fuzz_mutations import in_bytes
from fuzz_places import reseal
from fuzz_targets import Command, preprocess

IMPORTED = (
    *("light_jax.training.run", "light_jax.training.api", "light_jax.training.loop"),
    *("light_jax.checkpoint.saver", "orbax.checkpoint.v1", "light_jax.data.stats", "conversion"),
    *("light_llm.checkpoint.loading", "light_llm.models.transformer.model", "conversion.weights"),
    *(
        "light_llm.preprocess.pipeline",
        "light_llm.preprocess.train",
        "light_jax.checkpoint.loading",
    ),
    *("light_llm.checkpoint.tokenizer", "light_jax.models.transformer.model", "flax.nnx"),
)
"""What the readers import, before the forks."""
LIMITS = Limits(seconds=20.0, mebibytes=700)
LONGEST = 20_000
"""Characters that a child tells of what it read: all must fit into a pipe at once."""


@dataclass
class Outcome:
    """How a reader ended: `read` something, `refused` the file, or failed (any other word)."""

    how: str
    said: str = ""
    told: list[str] = field(default_factory=list)
    """Warnings and notes."""


def attempt(read: Read, path: Path) -> Outcome:
    """A reader in a fork, within LIMITS."""
    receiving, sending = os.pipe()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pid = os.fork()
    if pid == 0:
        os.close(receiving)
        _child(read, path, sending)
    os.close(sending)
    ended, data = None, b""
    with os.fdopen(receiving, "rb") as pipe:
        os.set_blocking(pipe.fileno(), False)
        ended = fuzz_case.wait_for(pid, LIMITS.seconds)
        if ended is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Outcome("hang")
        data = pipe.read() or b""
    code, more = os.waitstatus_to_exitcode(ended[0]), (ended[1].ru_maxrss - held) // 1024
    if code < 0:
        return Outcome(f"killed by {signal.Signals(-code).name}")
    if more > LIMITS.mebibytes:
        return Outcome("memory", f"{more:,} MiB")
    return Outcome(**json.loads(data)) if data else Outcome("nothing said", f"exit {code}")


def _child(read: Read, path: Path, sending: int) -> None:
    from light_llm.errors import UserError

    try:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        fuzz_case.limit(LIMITS)
        notes = io.StringIO()
        with warnings.catch_warnings(record=True) as heard, contextlib.redirect_stderr(notes):
            warnings.simplefilter("always")
            try:
                taken = repr(read(path))
                end = Outcome("read", taken if len(taken) < LONGEST else digest([taken]))
            except UserError as error:
                end = Outcome("refused", str(error))
            except OSError as error:  # which a command tells as a message too
                end = Outcome("refused" if error.filename else "OSError", str(error))
        end.told = [str(each.message) for each in heard if issubclass(each.category, UserWarning)]
        end.told += notes.getvalue().splitlines()
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        end = Outcome("traceback", f"{type(error).__name__} in {where}: {str(error)[:300]}")
    finally:
        with contextlib.suppress(BrokenPipeError):
            os.write(sending, json.dumps(vars(end)).encode())
        os._exit(0)


def damaged(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Other bytes, and what was done."""
    if data and rng.random() < 0.67:
        # footers and indices lie at the end, and are small
        share = rng.random() if rng.random() < 0.5 else 1 - 0.2 * rng.random() ** 2
        at, bit = min(int(share * len(data)), len(data) - 1), rng.randrange(8)
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], f"byte {at}, bit {bit}"
    return in_bytes(rng, data)


def judge(kind: Kind, path: Path, whole: Outcome, now: Outcome) -> str | None:
    """What is wrong, in words."""
    if now.how == "refused":
        named = path.name in now.said or any(
            str(folder) in now.said for folder in path.parents if folder.name
        )
        return None if named else f"the message does not name the file: {now.said[:150]}"
    if now.how != "read":
        return f"{now.how}: {now.said}"
    silent = kind.covered and now.said != whole.said and now.told == whole.told
    return f"silent: {_difference(whole.said, now.said)}" if silent else None


def _difference(old: str, new: str) -> str:
    pairs = enumerate(zip(old, new, strict=False))
    at = next((place for place, (one, other) in pairs if one != other), 0)
    return f"{old[max(0, at - 30) : at + 30]} -> {new[max(0, at - 30) : at + 30]}"


class Cases:
    """The cases of a base, in a copy of it that this process has for itself."""

    def __init__(self, base: Path, seed: int, only: str) -> None:
        self.base, self.seed, self.only = base, seed, only
        self.kinds = [kind for kind in KINDS if only in kind.name]
        self.files: dict[str, list[Path]] = {}
        self.whole: dict[tuple[str, Path], Outcome] = {}

    def read_whole(self) -> None:
        """Read every file as it is, which must do."""
        os.chdir(self.base)
        for kind in self.kinds:
            self.files[kind.name] = sorted(p for p in Path().glob(kind.glob) if p.is_file())
            for read, path in itertools.product(kind.readers, self.files[kind.name]):
                if (read.__name__, path) not in self.whole:
                    whole = self.whole[read.__name__, path] = attempt(read, path)
                    assert whole.how == "read", f"{read.__name__} of the whole {path}: {whole}"

    def start(self, process: int) -> None:
        copy = self.base.with_name(f"copy-{process}")
        shutil.copytree(self.base, copy)
        os.chdir(copy)

    def run(self, number: int) -> dict[str, Any]:
        """Case `number`: its kind, what was done, and how each reader ended."""
        rng = random.Random(f"{self.seed}:{number}")
        kind = rng.choices(self.kinds, [kind.weight for kind in self.kinds])[0]
        path, read = rng.choice(self.files[kind.name]), rng.choice(kind.readers)
        whole = self.whole[read.__name__, path]
        data, config = path.read_bytes(), Path("fresh/final.config.json")
        recorded = config.read_bytes()
        new, how = damaged(rng, data)
        path.write_bytes(new)
        if kind.resealed:
            reseal(Path("fresh/final"), path)
        now = attempt(read, path)
        path.write_bytes(data)
        config.write_bytes(recorded)
        failure = None if kind.joins and how == "twice" else judge(kind, path, whole, now)
        same = "the same" if now.said == whole.said else "other content"
        return {
            "number": number,
            "kind": kind.name,
            "case": f"{path}: {how}; {read.__name__}",
            "end": same if now.how == "read" else now.how,
            "failure": failure,
            "said": [now.said[:600], *now.told],
        }


def make_base(work: Path) -> Path:
    """work/base: a corpus, what llm-preprocess makes of it, and the tags of a run of it."""
    sandbox = work / "sandbox"
    fuzz_base.in_fork(lambda: fuzz_base.write_inputs(sandbox))
    for command in (
        preprocess("pre.yaml", "data", "--output=data"),
        Command(("llm-train", "fresh.yaml"), ("fresh",)),
    ):
        ended = fuzz_case.run(sandbox, command, Limits(seconds=300))
        assert ended.code == 0, (command.args, ended.stderr)
    (sandbox / "given").rename(work / "base")
    return work / "base"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", type=int, nargs="+", help="these alone, with what they said")
    parser.add_argument("--only", default="", help="kinds whose name holds this text")
    parser.add_argument("--project", type=Path, default=ROOT, help="whose readers are used")
    return parser.parse_args()


def tell(results: list[dict[str, Any]], seconds: float) -> None:
    """A table of kinds and ends."""
    ends = ["refused", "the same", "other content"]
    count = collections.Counter((each["kind"], each["end"]) for each in results)
    failed = collections.Counter(each["kind"] for each in results if each["failure"])
    print(f"{'kind':22}{'flips':>7}" + "".join(f"{end:>15}" for end in ends) + f"{'failed':>8}")
    for kind in [kind.name for kind in KINDS if any(each["kind"] == kind.name for each in results)]:
        total = sum(number for (name, _), number in count.items() if name == kind)
        row = "".join(f"{count[kind, end]:15,}" for end in ends)
        print(f"{kind:22}{total:7,}{row}{failed[kind]:8,}")
    print(f"{len(results):,} flips in {seconds:,.0f} s, {failed.total():,} failed")


def main() -> None:
    args = arguments()
    fast = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="flips-", dir=fast) as folder:
        work = Path(folder).resolve()
        start = time.monotonic()
        (work / "modules").write_text(" ".join(IMPORTED))
        imports(args.project.resolve(), work)
        gc.freeze()  # so that the forks have little to look through
        cases = Cases(make_base(work), args.seed, args.only)
        cases.read_whole()
        print(f"the base was made in {time.monotonic() - start:.0f} s", flush=True)
        start, results = time.monotonic(), []
        numbers = args.case or range(args.flips)
        for each in fuzz_base.spread(numbers, args.processes, cases.run, cases.start):
            results.append(each)
            if each["failure"] or args.case:
                held = each["failure"] or "held"
                print(f"case {each['number']} ({each['kind']}) {each['case']}: {held}", flush=True)
            if args.case:
                print("\n".join(map(str, each["said"])))
        tell(results, time.monotonic() - start)
    raise SystemExit(any(each["failure"] for each in results))


if __name__ == "__main__":
    main()
