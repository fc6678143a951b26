"""The commands that a fuzz case can run, and the files that each of them reads."""

from __future__ import annotations

from dataclasses import dataclass

MAINS = {
    "llm-train": "light_jax.cli.train",
    "llm-run": "light_llm.cli.run",
    "llm-preprocess": "light_llm.cli.preprocess",
    "llm-data": "light_jax.cli.data",
    "llm-eval": "light_jax.cli.eval",
    "llm-runs": "light_jax.cli.runs",
    "llm-parity": "light_jax.cli.parity",
    "llm-convert": "light_jax.cli.convert",
}


@dataclass(frozen=True)
class Command:
    args: tuple[str, ...]
    writes: tuple[str, ...] = ()  # what it may change, relative to the folder it is started in
    codes: tuple[int, ...] = (0, 2)
    tag: str = ""  # whose recorded files it reads


def preprocess(config: str, output: str, *flags: str) -> Command:
    return Command(("llm-preprocess", config, *flags), (output,))


COMMANDS = {
    "train": Command(("llm-train", "fresh.yaml"), ("fresh",)),
    "train, JSON": Command(("llm-train", "fresh.json"), ("fresh",)),
    "init_from": Command(("llm-train", "init.yaml"), ("inited",)),
    "resume auto": Command(
        ("llm-train", "more.yaml", "--resume", "auto"), ("out",), tag="out/final"
    ),
    "resume PREFIX": Command(
        ("llm-train", "more.yaml", "--resume", "out/step0000006"), ("out",), tag="out/step0000006"
    ),
    "replay": Command(
        ("llm-train", "bad.yaml", "--replay", "bad/nonfinite-step2"), codes=(0, 2, 3)
    ),
    "run": Command(
        ("llm-run", "--checkpoint", "out/best", "--prompt", "the cat", "--max-tokens", "4"),
        tag="out/best",
    ),
    "run, JAX": Command(
        ("llm-run", "--checkpoint", "out/best", "--prompt", "a", "--backend", "jax"),
        tag="out/best",
    ),
    "run, no digests": Command(("llm-run", "--checkpoint", "bare/best", "--prompt", "the cat")),
    "preprocess": preprocess("pre.yaml", "pre"),
    "preprocess, JSON": preprocess("pre.json", "pre"),
    "preprocess, overwrite": preprocess("pre.yaml", "data", "--output=data", "--overwrite"),
    "preprocess, tokenizer": preprocess("load.yaml", "pre"),
    "continue": preprocess("pre.yaml", "stopped", "--output=stopped"),
    "continue, overwrite": preprocess("pre.yaml", "stopped", "--output=stopped", "--overwrite"),
    "complete": preprocess("pre.yaml", "moving", "--output=moving"),
    "complete, overwrite": preprocess("pre.yaml", "moving", "--output=moving", "--overwrite"),
    "stats": Command(("llm-data", "stats", "data/train", "--no-png")),
    "show": Command(("llm-data", "show", "data/train", "--seq-len", "16", "--window", "5")),
    "parity": Command(("llm-parity", "out/best"), codes=(0, 1, 2), tag="out/best"),
    "parity, steps": Command(
        ("llm-parity", "fresh.yaml", "--steps", "1", "--no-png"), codes=(0, 1, 2)
    ),
    "eval": Command(
        ("llm-eval", "out/best", "--data", "data/val", "--json"), codes=(0, 2, 3), tag="out/best"
    ),
    "eval, PyTorch": Command(
        ("llm-eval", "out", "--data", "data/val", "--backend", "torch"),
        codes=(0, 2, 3),
        tag="out/best",
    ),
    "runs": Command(("llm-runs", "."), tag="out/best"),
    "runs, clean": Command(("llm-runs", "clean", "out", "--keep", "1"), tag="out/final"),
    "to-torch": Command(
        ("llm-convert", "state", "to-torch", "out/final"), ("out/final.state.pt",), tag="out/final"
    ),
    "from-torch": Command(("llm-convert", "state", "from-torch", "torch/final"), ("torch",)),
}
REMAKES_DATA = {name for name in COMMANDS if name.startswith(("continue", "complete"))}


@dataclass(frozen=True)
class Target:
    kind: str
    glob: str  # below the folder that the command is started in
    form: str  # of fuzz_mutations.mutate
    commands: str  # by their names in COMMANDS, "; " between them
    globbed: bool = False


CONTINUES, COMPLETES = "continue; continue, overwrite", "complete; complete, overwrite"
DATA = "train; stats; show; preprocess, overwrite"
TARGETS = (
    Target("config, YAML", "fresh.yaml", "yaml", "train; train; parity, steps"),
    Target("config, JSON", "fresh.json", "json", "train, JSON"),
    Target("preprocess config", "pre.yaml", "yaml", "preprocess; continue"),
    Target("preprocess config", "pre.json", "json", "preprocess, JSON"),
    Target("JSON lines", "corpus/a.jsonl", "jsonl", "preprocess; continue", True),
    Target("gzip", "corpus/b.jsonl.gz", "bytes", "preprocess", True),
    Target("text", "corpus/c.txt", "bytes", "preprocess", True),
    Target("parquet of text", "corpus/d.parquet", "bytes", "preprocess", True),
    Target("shard", "data/train/*.parquet", "bytes", f"{DATA}; resume PREFIX; parity, steps", True),
    Target("shard", "data/val/*.parquet", "bytes", "train; eval; eval, PyTorch", True),
    Target("manifest", "data/manifest.json", "json", f"{DATA}; eval"),
    Target("journal", "stopped/.preprocess/journal.jsonl", "jsonl", CONTINUES),
    Target("stage", "stopped/.preprocess/new/*/*", "bytes", CONTINUES),
    Target("moves", "moving/.preprocess/moves.json", "json", COMPLETES),
    Target("stage", "moving/.preprocess/new/*/*", "bytes", COMPLETES),
    Target(
        "tokenizer",
        "data/tokenizer/*",
        "json",
        "run; preprocess, tokenizer; stats; show; train; eval",
    ),
    Target("weights", "{tag}.safetensors", "safetensors", "run; run, JAX; parity; eval"),
    Target("weights", "{tag}.safetensors", "safetensors", "resume auto; resume PREFIX; to-torch"),
    Target("weights", "bare/best.safetensors", "safetensors", "run, no digests; init_from"),
    Target("config.json", "{tag}.config.json", "json", "run; run, JAX; parity; eval; to-torch"),
    Target("config.json", "{tag}.config.json", "json", "resume auto; resume PREFIX"),
    Target("config.json", "bare/best.config.json", "json", "run, no digests; init_from"),
    Target("config.json", "torch/final.config.json", "json", "from-torch"),
    Target("metrics", "out/metrics.jsonl", "jsonl", "resume auto; resume PREFIX"),
    Target(".resumed.json", "out/.resumed.json", "json", "resume auto; resume PREFIX"),
    Target(".state", "{tag}.state/_*", "json", "resume auto; resume PREFIX; to-torch"),
    Target(".state", "{tag}.state/state/_*", "json", "resume auto; resume PREFIX; to-torch"),
    Target(".state", "{tag}.state/*/*/*", "bytes", "resume auto; resume PREFIX; to-torch"),
    Target(".state", "{tag}.state/state/*.*", "bytes", "resume auto; resume PREFIX; to-torch"),
    Target(".state.pt", "torch/final.state.pt", "bytes", "from-torch"),
    Target("nonfinite", "bad/nonfinite-step2/report.json", "json", "replay"),
    Target("nonfinite", "bad/nonfinite-step2/tokens.npy", "npy", "replay"),
    Target("nonfinite", "bad/nonfinite-step2/weights.safetensors", "safetensors", "replay"),
    Target("places", "out/.lock", "link", "resume auto; resume PREFIX"),
    Target("places", "out/.final.writing", "link", "resume auto; resume PREFIX"),
    Target("places", "out/.final.committed", "link", "resume auto; resume PREFIX"),
    Target("places", "out/.best.committed/best.safetensors", "link", "resume auto; run; parity"),
    Target("places", "out/.best.committed/best.state", "link", "resume auto"),
    Target("places", "out/step0000008.state", "link", "resume auto"),
    Target("places", "out/final.state", "link", "to-torch; resume PREFIX"),
    Target("places", "out/more.yaml", "link", "resume auto"),
    Target("places", "fresh/.lock", "link", "train"),
    Target("places", "fresh/metrics.jsonl", "link", "train"),
    Target("places", "out/final.state.pt", "link", "to-torch"),
    Target("places", "torch/final.state", "link", "from-torch"),
    Target("places", "torch/.final.writing", "link", "from-torch"),
    Target("places", "pre/.preprocess", "link", "preprocess"),
    Target("places", "pre/.preprocess/lock", "link", "preprocess"),
    Target("places", "pre/.preprocess/new", "link", "preprocess"),
    Target("places", "pre/.preprocess/.moves.json.tmp", "link", "preprocess"),
    Target("places", "stopped/.preprocess/lock", "link", CONTINUES),
    Target("places", "stopped/.preprocess/new", "link", CONTINUES),
    Target("places", "stopped/.preprocess/new/train", "link", CONTINUES),
    Target("places", "moving/.preprocess/old", "link", COMPLETES),
    Target("places", "moving/train", "link", COMPLETES),
    Target("places", "data/tokenizer", "link", "preprocess, overwrite; run"),
    Target("places", "data/train", "link", "preprocess, overwrite"),
)
