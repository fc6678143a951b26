"""Tokens per second of both backends against transformers' generate, on a Llama of the same size.

    python benchmarks/generate.py [--config configs/small.yaml] [--batch 1 8] [--tokens 128]

Float32, random weights, greedy: the architecture of the config for light-llm, the Llama of its
dimensions (the same model, where the config's is a Llama) for transformers. Each round runs all
three in turn. Prefill is the time from the prompts to their first ids; tokens/s counts the ids
after these, of all rows together. A run before the rounds takes the compilation, and is printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version

import jax
import numpy as np
import torch
from flax import nnx
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

import light_jax.generate as in_jax
import light_llm.generate as in_torch
from conversion import to_torch
from light_jax.config import load_config
from light_jax.models.transformer import Transformer as JaxTransformer
from light_llm.models.transformer import Transformer, TransformerConfig
from light_llm.sampling import Sampling

# The prompts of a batch, and what continues them, called after each step.
Run = Callable[[list[list[int]], int, Callable[[], None]], None]


def light_jax(cfg: TransformerConfig) -> tuple[Run, JaxTransformer]:
    model = JaxTransformer(cfg, rngs=nnx.Rngs(0))

    def run(prompts: list[list[int]], tokens: int, tick: Callable[[], None]) -> None:
        for _ in in_jax.generate_batch(model, prompts, Sampling(tokens, temperature=0)):
            tick()

    return run, model


def light_torch(cfg: TransformerConfig, weights: JaxTransformer) -> Run:
    model = Transformer(cfg).eval()
    params = nnx.state(weights, nnx.Param)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in to_torch(params, cfg).items()})

    def run(prompts: list[list[int]], tokens: int, tick: Callable[[], None]) -> None:
        for _ in in_torch.generate_batch(model, prompts, Sampling(tokens, temperature=0)):
            tick()

    return run


def llama(cfg: TransformerConfig) -> tuple[Run, int]:
    """transformers' generate, with its default cache, and how many parameters it runs."""
    att = cfg.attention
    shape = LlamaConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.d_model,
        intermediate_size=cfg.ffn_dim,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=att.num_heads,
        num_key_value_heads=att.num_kv_heads,
        head_dim=att.head_dim,
        max_position_embeddings=cfg.max_seq_len,
        tie_word_embeddings=cfg.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(shape).eval()

    def run(prompts: list[list[int]], tokens: int, tick: Callable[[], None]) -> None:
        class Tick(StoppingCriteria):  # called after each step; a streamer takes one row only
            def __call__(self, input_ids, scores, **_):
                tick()
                return torch.zeros(len(input_ids), dtype=torch.bool)

        ids = torch.tensor(prompts)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([Tick()]),
        )

    return run, model.num_parameters()


def timed(run: Run, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
    """(seconds to the first ids, ids per second after them)."""
    times = [time.perf_counter()]
    run(prompts, tokens, lambda: times.append(time.perf_counter()))
    assert len(times) == 1 + tokens
    return times[1] - times[0], len(prompts) * (tokens - 1) / (times[-1] - times[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/small.yaml")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=100, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    cfg = load_config(args.config).model
    jax_run, jax_model = light_jax(cfg)
    llama_run, llama_size = llama(cfg)
    runs = {
        "light-llm, jax": jax_run,
        "light-llm, torch": light_torch(cfg, jax_model),
        "transformers": llama_run,
    }
    size = sum(x.size for x in jax.tree.leaves(nnx.state(jax_model, nnx.Param)))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(
        f"{args.config}: {size / 1e6:.1f} M parameters, the Llama {llama_size / 1e6:.1f} M; float32"
        f"; {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads\njax {jax.__version__} on "
        f"{jax.devices()[0].device_kind}, torch {torch.__version__}, transformers "
        f"{version('transformers')}; commit {commit.stdout.strip() or 'none'}\n"
        f"prompts of {args.prompt} tokens, {args.tokens} written, {args.rounds} rounds, medians"
    )
    for batch in args.batch:
        prompts = np.random.default_rng(0).integers(cfg.vocab_size, size=(batch, args.prompt))
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for name, run in runs.items():
            start = time.perf_counter()
            run(prompts.tolist(), args.tokens, lambda: None)
            print(f"batch {batch}: first run of {name} {time.perf_counter() - start:.1f} s")
        for _ in range(args.rounds):
            for name, run in runs.items():
                results[name].append(timed(run, prompts.tolist(), args.tokens))
        print(f"| batch {batch} | prefill ms | tokens/s | prefill speed | decoding speed |")
        print("|---|---|---|---|---|")
        medians = {
            n: [statistics.median(x) for x in zip(*r, strict=True)] for n, r in results.items()
        }
        peer_prefill, peer_rate = medians["transformers"]
        for name, (prefill, rate) in medians.items():
            print(
                f"| {name} | {1e3 * prefill:.0f} | {rate:.0f} | {peer_prefill / prefill:.2f} | "
                f"{rate / peer_rate:.2f} |"
            )


if __name__ == "__main__":
    main()
