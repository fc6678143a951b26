"""A checkpoint as a GGUF file for llama.cpp, written one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conversion.families import across_documents
from conversion.mapping import TIED_KEY
from conversion.weights import check_keys, check_tied
from light_llm.checkpoint.digests import verify
from light_llm.checkpoint.parts import is_weights
from light_llm.checkpoint.reading import Checkpoint, model_config, read_own, steadily
from light_llm.checkpoint.tensors import Reader, read_tensors
from light_llm.checkpoint.tokenizer import chosen_tokenizer
from light_llm.errors import UserError
from light_llm.files import disk, given
from light_llm.formats.gguf_model import (
    BLOCK,
    DTYPES,
    Tensor,
    architecture_of,
    paired,
    plan,
    rope_factors,
)
from light_llm.formats.gguf_vocabulary import Vocabulary, vocabulary
from light_llm.formats.output import check_output, check_packages, size_of
from light_llm.models.transformer.config import TransformerConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

LARGEST_HALF = 65504.0  # of float16


def write_gguf(
    prefix: str | Path,
    out: str | Path,
    dtype: str = "float16",
    tokenizer: str | Path | None = None,
    *,
    with_tokenizer: bool = True,
    overwrite: bool = False,
) -> list[str]:
    """Write a checkpoint and its tokenizer to OUT.gguf; after an error there is no new file.

    Args:
        prefix: DIR/TAG.
        dtype: of the matrices: float16, float32 or q8_0. Norms and biases stay float32.
        tokenizer: a file, a folder or a name of the hub; the checkpoint's by default.
        with_tokenizer: False writes none. llama.cpp then takes ids only.
        overwrite: replace a file that is there.

    Returns:
        The lines to print.

    Raises:
        UserError: llama.cpp does not compute this model or this tokenizer, or the checkpoint is
            damaged.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype!r} must be {', '.join(DTYPES)}")
    if tokenizer is not None and not with_tokenizer:
        raise UserError("--tokenizer contradicts --no-tokenizer; give one of them")
    check_packages("llm-convert gguf", "gguf", "gguf")
    check_output(out, ".gguf", overwrite)

    def convert(found: Checkpoint) -> list[str]:
        cfg = model_config(found)
        architecture = architecture_of(cfg, prefix)
        vocab = _vocabulary(found, cfg, tokenizer) if with_tokenizer else None
        verify(found, is_weights)
        return _write(found, cfg, architecture, vocab, dtype, out)

    return steadily(lambda: read_own(prefix), convert)


def _vocabulary(
    found: Checkpoint, cfg: TransformerConfig, tokenizer: str | Path | None
) -> Vocabulary:
    chosen = chosen_tokenizer(found, None if tokenizer is None else str(tokenizer))
    if chosen is None:
        raise UserError(
            f"{found.files.prefix}: no tokenizer lies beside it, and tokenizer_path is not set in "
            "its config; name it with --tokenizer PATH, or write none with --no-tokenizer"
        )
    return vocabulary(chosen.tokenizer, cfg.vocab_size, chosen.path)


def _write(
    found: Checkpoint,
    cfg: TransformerConfig,
    architecture: str,
    vocab: Vocabulary | None,
    dtype: str,
    out: Path,
) -> list[str]:
    import gguf

    source = found.files.weights
    shapes = {key: tensor.shape for key, tensor in read_tensors(source).items()}
    check_keys(shapes, cfg, source)
    tensors, factors = plan(cfg, architecture, dtype), rope_factors(cfg)
    with disk.replacing(out) as temporary:
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_name(f"{found.files.directory.resolve().name} {found.files.tag}")
        _add_model(writer, cfg, dtype)
        _add_vocabulary(writer, vocab, cfg.vocab_size)
        if factors is not None:
            writer.add_tensor_info(
                "rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes
            )
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType[tensor.kind]
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, kind
            )
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(factors)
            for array in _arrays(source, tensors, cfg):
                writer.write_tensor_data(array)
        except OSError as error:
            if error.errno is None:  # numpy's, whose text has two numbers alone
                raise UserError(
                    f"{out}: the disk took only a part of it ({error}); make room there"
                ) from None
            raise
        finally:
            writer.close()
    lines = [f"{out}: {architecture}, {len(tensors)} tensors, {dtype}, {size_of(out)}"]
    odd = sum(tensor.kind == "F16" for tensor in tensors) if dtype == "q8_0" else 0
    if odd:
        lines.append(f"{odd} are float16: their rows are no multiple of {BLOCK}, as q8_0 needs")
    return lines + across_documents(cfg, "llama.cpp")


def _add_model(writer: GGUFWriter, cfg: TransformerConfig, dtype: str) -> None:
    """The keys from which llama.cpp builds the model."""
    import gguf

    att, scaling = cfg.attention, cfg.positional.rope_scaling
    writer.add_type("model")
    writer.add_file_type(
        {
            "float32": gguf.LlamaFileType.ALL_F32,
            "float16": gguf.LlamaFileType.MOSTLY_F16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }[dtype]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_context_length(cfg.max_seq_len)
    writer.add_embedding_length(cfg.d_model)
    writer.add_block_count(cfg.num_layers)
    writer.add_feed_forward_length(cfg.ffn_dim)
    writer.add_head_count(att.num_heads)
    writer.add_head_count_kv(att.num_kv_heads)
    writer.add_key_length(att.head_dim)
    writer.add_value_length(att.head_dim)
    writer.add_layer_norm_rms_eps(cfg.norm.eps)
    writer.add_rope_dimension_count(att.head_dim)
    writer.add_rope_freq_base(cfg.positional.rope_base)
    if isinstance(scaling, float | int):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling)


def _add_vocabulary(writer: GGUFWriter, vocab: Vocabulary | None, size: int) -> None:
    if vocab is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocab.pre)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    writer.add_token_merges(vocab.merges)
    writer.add_bos_token_id(vocab.bos_id)
    writer.add_eos_token_id(vocab.eos_id)
    writer.add_add_bos_token(vocab.add_bos)
    writer.add_add_eos_token(False)


def _arrays(source: Path, tensors: list[Tensor], cfg: TransformerConfig) -> Iterator[np.ndarray]:
    """The tensors as they are written, read one after the other."""
    import ml_dtypes  # noqa: F401  (numpy then knows bfloat16)

    stored = read_tensors(source)
    with (
        given.foreign(lambda reason: f"{source}: not a whole safetensors file: {reason}"),
        Reader(stored, "numpy") as reader,
    ):
        if cfg.tie_embeddings and TIED_KEY in stored:
            check_tied(reader.whole("tok_emb.weight"), reader.whole(TIED_KEY), source)
        for tensor in tensors:
            array = reader.whole(tensor.key).astype(np.float32)
            if tensor.heads is not None:
                array = paired(array, tensor.heads)
            yield _encoded(array, tensor, source)


def _encoded(array: np.ndarray, tensor: Tensor, source: Path) -> Any:
    """float32 numbers in the output's type."""
    import gguf

    if tensor.kind == "F32":
        return array
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= LARGEST_HALF * (127 if tensor.kind == "Q8_0" else 1):
        raise UserError(
            f"{source}: {tensor.key} has numbers up to {largest:g}, and float16 ends at "
            f"{LARGEST_HALF:g}; use --dtype float32"
        )
    return gguf.quants.quantize(array, gguf.GGMLQuantizationType[tensor.kind])
