"""The start summary: what is about to be trained, on what, with what."""

from __future__ import annotations

import os

import jax

from light_jax.data.mixed import MixedStream, parts_of
from light_jax.parallel.sharding import MESH_AXES
from light_jax.reporting.attention import attention_of
from light_jax.reporting.sources import lines as lines_of_sources
from light_jax.reporting.units import count, counted, size
from light_jax.state import Run, bytes_per_device


def describe(run: Run) -> list[str]:
    cfg, model = run.cfg, run.cfg.model
    att = model.attention
    stream, per_step = run.train_stream, cfg.tokens_per_step
    if isinstance(stream, MixedStream):
        epochs, sources = "", f", from {counted(len(stream.names), 'source')}"
    else:
        epochs, sources = f", {cfg.num_windows / len(stream):.2f} epochs", ""
    device = run.mesh.devices.flat[0]
    micro_batches = counted(cfg.gradient_accumulation_steps, "micro-batch", "micro-batches")
    mesh = " · ".join(f"{axis} {run.mesh.shape[axis]}" for axis in MESH_AXES)
    lines = [
        f"model       {count(run.num_params)} parameters ({run.num_params:,}): {model.num_layers} "
        f"layers, d_model {model.d_model}, {att.variant} {att.num_heads}/{att.num_kv_heads} heads "
        f"of {att.head_dim}, {model.ffn.variant} {model.ffn_dim}, vocabulary {model.vocab_size}",
        f"steps       {cfg.num_steps:,} of {per_step:,} tokens "
        f"({counted(cfg.batch_size, 'sequence')} × "
        f"{micro_batches} × {cfg.seq_len}){epochs}",
        f"train data  {stream.num_tokens:,} tokens in {counted(len(stream.shards), 'shard')}"
        f"{sources}",
        *lines_of_sources(run, cfg.num_steps),
    ]
    if run.val_stream is not None:
        windows = sum(
            min(part.steps * cfg.batch_size, len(part.stream))
            for part in parts_of(run.val_stream, cfg.eval_steps)
        )
        lines.append(
            f"val data    {run.val_stream.num_tokens:,} tokens, {windows * cfg.seq_len:,} of them "
            f"every {counted(cfg.eval_every, 'step').removeprefix('1 ')}"
        )
    if cfg.seq_len < model.max_seq_len and model.positional.encoding != "learned":
        lines.append(
            f"positions   {cfg.seq_len} are trained (seq_len), of {model.max_seq_len} (max_seq_len)"
        )
    lines += [
        f"devices     {run.mesh.size} × {device.device_kind} in "
        f"{counted(jax.process_count(), 'process', 'processes')}, "
        f"mesh {mesh}",
        f"precision   {cfg.dtype} matmuls, float32 weights"
        + (" (bfloat16 in the step)" if cfg.bf16_model_weights else ""),
        f"attention   {attention_of(cfg, run.mesh)}",
        *_determinism(device),
        f"state       {size(bytes_per_device(run.state))} per device ({run.state.parts})",
        f"checkpoints {cfg.checkpoint_dir}",
    ]
    if run.resumed is not None:
        lines.append(f"resuming    {run.resumed.prefix} at step {run.resumed.step}")
        lines += [f"  changed   {change}" for change in run.changes]
        if run.cfg.init_from is not None:
            lines.append("  init_from is ignored on resume")
    return lines


def _determinism(device: jax.Device) -> list[str]:
    """On a GPU, whether a resume is exact to the bit."""
    if device.platform != "gpu":
        return []
    flag = "--xla_gpu_deterministic_ops=true"
    is_set = flag in os.environ.get("XLA_FLAGS", "")
    return [
        f"resume      {'exact to the bit' if is_set else f'not to the bit: XLA_FLAGS lacks {flag}'}"
    ]
