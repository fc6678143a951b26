"""Runs in MaxText's environment: its ahead-of-time compilation, with what the compiler says kept.

    python maxtext_compile.py FOLDER key=value …

FOLDER gets `facts.json` and, where the program compiles, its text as `program.txt`. The keys are
MaxText's own. Nothing of light_jax is imported: its versions of jax differ.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    from maxtext.configs import pyconfig
    from maxtext.trainers.pre_train import train_compile

    folder, keys = Path(sys.argv[1]), sys.argv[2:]
    compile_step = train_compile.jit_and_compile
    facts: dict[str, Any] = {
        "versions": {
            name: importlib.metadata.version(name) for name in ("maxtext", "jax", "libtpu")
        }
    }

    def kept(*args: Any, **kwargs: Any) -> Any:
        start, start_cpu = time.perf_counter(), time.process_time()
        try:
            compiled = compile_step(*args, **kwargs)
        except Exception as error:
            facts["error"] = str(error)
            raise
        finally:
            facts["compile_seconds"] = time.perf_counter() - start
            facts["compile_cpu_seconds"] = time.process_time() - start_cpu
            (folder / "facts.json").write_text(json.dumps(facts))
        memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
        facts["program"] = {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "bytes_accessed": costs.get("bytes accessed"),
            "flops": costs.get("flops"),
        }
        (folder / "program.txt").write_text(compiled.as_text())
        (folder / "facts.json").write_text(json.dumps(facts))
        return compiled

    train_compile.jit_and_compile = kept
    config = str(Path(pyconfig.__file__).with_name("base.yml"))
    train_compile.main(["train_compile", config, *keys])


if __name__ == "__main__":
    main()
