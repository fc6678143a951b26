"""What a fuzz case does to one file: bytes, sizes, types, depth, names; or as fuzz_places.py says.

Each function says in words what it did. Positions are shares of a file's size, so that the same
case does the same to the next base, whose bytes may differ.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from fuzz_places import kinds, links, permissions
from fuzz_targets import Command, Target

ESCAPES = ("\x1b[2J\x1b]0;owned\x07", "a\rb\x00c", "\u202egpj.exe", "\x9b31m", "two\nlines")
PATHS = ("../outside/keep.txt", "../../keep.txt", "/etc/passwd", "..", ".", "", "~", "a/../../b")
SIZES = (
    *("-1", "0", "1", "3", "-9223372036854775809", "2147483648", "4294967297", "1000000000"),
    *("9223372036854775807", "18446744073709551616", "1e308", "1e999", "-0.5", "0.1"),
    "9" * 5000,
)
TYPES = (
    *(
        "null",
        "true",
        "false",
        "NaN",
        "-Infinity",
        "[]",
        "{}",
        '""',
        '"text"',
        "[null]",
        "[[], {}]",
    ),
    *('{"a": 1}', '"1"', "[1, 2, 3]", "0.0", '{"": {"": {}}}', '["a", "a"]'),
    f'"{"x" * 1_000_000}"',
)
DEPTH = (
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 50_000,
    '{"a":' * 900 + "1" + "}" * 900,
)
YAML_TEXTS = (
    "!!python/object/apply:os.system ['touch ../outside/owned']",
    "!!python/name:os.system",
    "&a [*a, *a]",
    "&a ["
    + ", ".join(["x" * 100] * 100)
    + "]\nb1: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nb2: [*b, *b]",
    "? [1, 2]\n: 3",
    "2001-01-01",
    "0o17",
    "1_000",
    ".nan",
    "!!binary aGVsbG8=",
    "%YAML 9.9",
    "\t- tab",
    "{" * 3000,
)
HOLE = "HOLEHOLEHOLE"
PLACES = ("checkpoint_dir", "output", "save_tokenizer")  # where a config's user wants it written


def in_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Some bytes changed; the last ones, where formats keep their index, more often."""
    if not data:
        return bytes(rng.randbytes(40)), "40 random bytes"
    at = int(len(data) * (rng.random() if rng.random() < 0.6 else 1 - rng.random() ** 3 * 0.3))
    at = min(at, len(data) - 1)
    share = f"at {at / len(data):.3f}"
    match rng.choice(("flip", "flips", "cut", "insert", "empty", "nul", "double", "drop", "noise")):
        case "flip":
            return _set(
                data, at, bytes([data[at] ^ 1 << rng.randrange(8)])
            ), f"a bit flipped {share}"
        case "flips":
            for _ in range(20):
                at = rng.randrange(len(data))
                data = _set(data, at, bytes([rng.randrange(256)]))
            return data, "20 bytes changed"
        case "cut":
            return data[:at], f"cut {share}"
        case "insert":
            return data[:at] + rng.randbytes(7) + data[at:], f"7 bytes inserted {share}"
        case "empty":
            return b"", "emptied"
        case "nul":
            return _set(data, at, bytes(min(64, len(data) - at))), f"64 NULs {share}"
        case "double":
            return data + data, "twice"
        case "drop":
            return data[:at] + data[at + 9 :], f"9 bytes dropped {share}"
        case _:
            return rng.randbytes(len(data)), "random bytes"


def _set(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def in_text(rng: random.Random, what: str, kind: str, text: str) -> tuple[str, str]:
    """JSON, JSON lines or YAML with one value, key or line of it changed."""
    if kind == "jsonl":
        lines = text.splitlines()
        number = rng.randrange(len(lines)) if lines else 0
        if not lines or rng.random() < 0.15:
            change = rng.choice(("dropped", "doubled", "moved"))
            line = lines.pop(number) if lines else "{}"
            lines[0 if change == "moved" else number : 0] = [] if change == "dropped" else [line]
            lines[number:number] = [line] if change == "doubled" else []
            return "\n".join(lines) + "\n", f"line {number + 1} {change}"
        lines[number], how = in_text(rng, what, "json", lines[number])
        return "\n".join(lines) + "\n", f"line {number + 1}: {how}"
    load, dump = (yaml.safe_load, yaml.safe_dump) if kind == "yaml" else (json.loads, json.dumps)
    tree = {"": load(text)}
    holder, key, place = _walk(rng, tree, numbers=what == "sizes")
    if what == "names" and isinstance(holder, dict) and key and rng.random() < 0.5:
        new = rng.choice((*ESCAPES, *PATHS, "x" * 100_000, "__class__"))
        holder[new] = holder.pop(key)
        return str(dump(tree[""])), f"key {place} renamed to {new[:40]!r}"
    if what == "types" and key != "" and rng.random() < 0.15:
        del holder[key]
        return str(dump(tree[""])), f"{place} deleted"
    raw = _raw(rng, what, kind, key)
    holder[key] = HOLE
    dumped = str(dump(tree[""]))
    dumped = dumped.replace(f'"{HOLE}"', raw).replace(HOLE, raw)
    return dumped, f"{place or 'the whole'} = {raw[:60]}"


def _raw(rng: random.Random, what: str, kind: str, key: Any) -> str:
    if what == "names" and key not in PLACES:
        text = rng.choice((*ESCAPES, *PATHS))
        return json.dumps(text + rng.choice(("", ".json", "/x")), ensure_ascii=rng.random() < 0.5)
    if kind == "yaml" and rng.random() < 0.3:
        return rng.choice(YAML_TEXTS)
    choices = {"sizes": SIZES, "depth": DEPTH}.get(what, TYPES)
    if key in PLACES:
        choices = tuple(raw for raw in choices if not raw.startswith('"')) or ("null",)
    return rng.choice(choices)


def _walk(rng: random.Random, tree: Any, numbers: bool) -> tuple[Any, Any, str]:
    """(a holder, the key of one of its values, the way there), all depths alike."""
    for _ in range(20):
        holder, key, place = tree, "", ""
        while (inner := holder[key]) and isinstance(inner, dict | list) and rng.random() < 0.8:
            holder = inner
            key = (
                rng.choice(sorted(inner, key=str))
                if isinstance(inner, dict)
                else (rng.randrange(len(inner)))
            )
            place += f"/{key}"
        if not numbers or type(holder[key]) in (int, float):
            break
    return holder, key, place


def in_safetensors(rng: random.Random, what: str, data: bytes) -> tuple[bytes, str]:
    """The header's JSON changed, or its length."""
    length = int.from_bytes(data[:8], "little")
    if what == "sizes" and rng.random() < 0.3:
        new = rng.choice((0, 1, length - 1, length + 1, 10**8, 2**31, 2**63, 2**64 - 1))
        return new.to_bytes(8, "little") + data[8:], f"header length {new}"
    text, how = in_text(rng, what, "json", data[8 : 8 + length].decode())
    header = text.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + data[8 + length :], f"header: {how}"


def in_npy(rng: random.Random, what: str, data: bytes) -> tuple[bytes, str]:
    """The header's dtype or shape replaced."""
    length = int.from_bytes(data[8:10], "little")
    kind = rng.choice(("<i4", "|O", "<f8", "<U9", "|V8", "<M8[s]", "x", "<i4" * 9))
    shape = rng.choice(
        ("(1, 4, 17)", "(1000000, 1000000)", "(-1, 4, 17)", "()", "[1]", "(2,)", "1")
    )
    if what == "depth":
        shape = "(" * 5000
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(length - 1) + "\n"
    size = len(header).to_bytes(2, "little") if len(header) < 2**16 else data[8:10]
    return data[:8] + size + header.encode() + data[10 + length :], f"header {kind!r} {shape[:40]}"


def renamed(rng: random.Random, path: Path) -> str:
    """A name with control characters, and half of the time content that must be told of."""
    name = rng.choice(ESCAPES).replace("\x00", "\x01") + path.suffix
    how = ""
    if rng.random() < 0.6:
        data, how = in_bytes(rng, path.read_bytes())
        path.write_bytes(data)
    path.rename(path.with_name(name))
    return f"renamed to {name!r} {how}"


WAYS = {
    "bytes": {"bytes": 4, "links": 1, "kinds": 1, "permissions": 0.5},
    "json": {
        **{"bytes": 2, "types": 3, "sizes": 2, "depth": 0.7, "names": 1.5},
        **{"links": 1, "kinds": 0.7, "permissions": 0.5},
    },
}


def mutate(
    rng: random.Random,
    path: Path,
    target: Target,
    outside: Path,
    variants: list[Path],
    command: Command,
) -> tuple[str, str]:
    """Do one thing to a file.

    Args:
        outside: a folder that no command is told of.
        variants: prepared files of the same kind.
        command: the one that will read it.

    Returns:
        (the way, what exactly was done)
    """
    kind = target.form
    own = path.parent.name in {place.partition("/")[0] for place in command.writes}
    if kind == "link":
        path.parent.mkdir(parents=True, exist_ok=True)
        if rng.random() < 0.7:
            return "links", links(rng, path, outside, own)
        return "kinds", kinds(rng, path)
    ways = dict(WAYS["bytes" if kind == "bytes" else "json"])
    ways |= {"variants": 4} if variants else {}
    ways |= {"renamed": 0.7} if target.globbed else {}
    way = rng.choices(list(ways), list(ways.values()))[0]
    match way:
        case "variants":
            chosen = rng.choice(variants)
            shutil.copyfile(chosen, path)
            return way, chosen.name
        case "links":
            return way, links(rng, path, outside, own)
        case "kinds":
            return way, kinds(rng, path)
        case "permissions":
            return way, permissions(rng, path)
        case "renamed":
            return way, renamed(rng, path)
    data = path.read_bytes()
    if way == "bytes":
        new, how = in_bytes(rng, data)
    elif kind == "safetensors":
        new, how = in_safetensors(rng, way, data)
    elif kind == "npy":
        new, how = in_npy(rng, way, data)
    else:
        text, how = in_text(rng, way, kind, data.decode())
        new = text.encode("utf-8", "surrogatepass")
    path.write_bytes(new)
    return way, how
