"""Folders of small Hugging Face models, as transformers itself saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHARDED = "60KB"

# name -> (family, changes of the config, dtype, max_shard_size)
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama": ("llama", {"tie_word_embeddings": True}, "float32", "1GB"),
    "llama3": (
        "llama",
        {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True},
        "float16",
        "1GB",
    ),
    "mistral": ("mistral", {"sliding_window": 9, "head_dim": 16}, "float32", SHARDED),
    "qwen2": ("qwen2", {"rms_norm_eps": 1e-5}, "bfloat16", SHARDED),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}, "bfloat16", "1GB"),
}


def save_model(folder: Path, case: str = "llama", **changes: Any) -> Any:
    """Save a random model, with biases and norms that count; what transformers reads, float32."""
    import torch
    import transformers

    family, own, dtype, shard_size = CASES[case]
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(family, **(SIZES | own | changes))
    torch.manual_seed(len(case))
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    # not `model.float()`: rope's frequencies, which are in no file, were rounded in it too
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()


def save_tokenizer(folder: Path, text: str, vocab_size: int = 300) -> int:
    """Train a byte-level BPE and save it as transformers does; its number of ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([text], trainer)
    mark = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=mark, bos_token=mark
    ).save_pretrained(folder)
    return backend.get_vocab_size()
