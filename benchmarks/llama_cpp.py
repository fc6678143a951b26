"""llama.cpp itself on files of `llm-convert gguf`: its log-probabilities beside PyTorch's.

    pip install xllamacpp && python benchmarks/llama_cpp.py

Tiny models of random weights, one or two for each architecture. llama.cpp keeps keys and values in
float32 here and computes attention without its fused kernel, which rounds to float16.
"""

from __future__ import annotations

import json
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xllamacpp
from safetensors.torch import save_file

from light_llm.formats.gguf import write_gguf
from light_llm.models.transformer import Transformer, TransformerConfig
from light_llm.tokenizer import train_bpe

TEXTS = [
    "The quick brown fox's dog.\n" * 3,
    "def f(x):\r\n\treturn x * 2  # end\r\n",
    "Grüße, 世界! 👩‍👧",
]
TEXTS += ["  leading and  trailing \n\n\nx\n y 12345 ", "a" * 50]
VOCAB = 300
LLAMA3 = {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, biases, rope/3": {
        "tie_embeddings": False,
        "attention": {"bias": True},
        "ffn": {"bias": True},
        "positional": {"rope_scaling": 3.0, "rope_base": 300.0},
    },
    "llama, llama3 rope": {"positional": {"rope_scaling": LLAMA3}},
    "llama, head_dim": {"attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 24}},
    "qwen2": {"attention": {"qkv_bias": True}},
    "qwen3": {"attention": {"qk_norm": True, "head_dim": 16}},
}


def checkpoint(folder: Path, changes: dict[str, Any]) -> tuple[Path, Transformer]:
    """A model of weights that all show in the logits, and its files."""
    base = {"vocab_size": VOCAB, "max_seq_len": 48, "d_model": 32, "num_layers": 2}
    attention = {"num_heads": 4, "num_kv_heads": 2} | changes.get("attention", {})
    cfg = TransformerConfig.model_validate(base | changes | {"attention": attention})
    torch.manual_seed(0)
    model = Transformer(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(("norm" in name) + 0.3 * torch.randn_like(parameter))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "m.safetensors")
    (folder / "m.config.json").write_text(json.dumps({"model": cfg.model_dump(mode="json")}))
    return folder / "m", model


def serve(path: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(path), 64, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def post(server: Any, path: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def distance(server: Any, model: Transformer) -> float:
    """The largest difference of a log-probability after 40 tokens."""
    random = np.random.default_rng(1)
    body = {"n_predict": 1, "n_probs": VOCAB, "temperature": 0.0, "cache_prompt": False}
    answer: dict[str, Any] = {}
    while "completion_probabilities" not in answer:  # none where the next token is half a character
        ids = random.integers(1, VOCAB, 40).tolist()
        answer = post(server, "/completion", body | {"prompt": ids})
    (step,) = answer["completion_probabilities"]
    theirs = {row["id"]: row["logprob"] for row in step["top_logprobs"]}
    assert len(theirs) == VOCAB
    with torch.no_grad():
        ours = torch.log_softmax(model(torch.tensor([ids]))[0, -1], -1)
    return max(abs(theirs[id] - float(ours[id])) for id in range(VOCAB))


def main() -> None:
    print(f"xllamacpp {version('xllamacpp')}, gguf {version('gguf')}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = train_bpe(TEXTS, VOCAB)
        tokenizer.save(folder / "tokenizer")
        for name, changes in MODELS.items():
            prefix, model = checkpoint(folder, changes)
            for dtype in ("float32", "float16", "q8_0"):
                out = folder / "m.gguf"
                write_gguf(prefix, out, dtype, folder / "tokenizer", overwrite=True)
                server = serve(out)
                same = all(
                    post(server, "/tokenize", {"content": text, "parse_special": False})["tokens"]
                    == tokenizer.encode(text)
                    for text in TEXTS
                )
                print(f"{name:24} {dtype:8} {distance(server, model):.1e}  same ids: {same}")
                del server


if __name__ == "__main__":
    main()
