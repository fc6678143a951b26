"""What other trainers call the keys of a config. For messages alone: no such name is accepted.

From nanoGPT, LitGPT, transformers (Trainer and the models' configs), MaxText, Levanter and
torchtitan. After a key's dotted name stands what is not the same there.
"""

from __future__ import annotations

_ALL_DEVICES = "(of all devices together)"
_BATCH = f"batch_size {_ALL_DEVICES}"
_GLOBAL = "batch_size times gradient_accumulation_steps"
_STEPS_ALL = "num_steps (in steps of the optimizer, those before a resume included)"
_LENGTH = "seq_len (with model.max_seq_len at least as large)"
_SHARE = "scheduler.min_lr_ratio (a share of optimizer.lr)"
_WARMUP = "scheduler.warmup_steps (a number of steps)"

_RUN = {
    **dict.fromkeys(("block_size", "context_length", "context_size", "max_seq_length"), _LENGTH),
    **dict.fromkeys(("max_target_length", "sequence_length", "seq_length", "n_ctx"), _LENGTH),
    **dict.fromkeys(("ctx_len", "max_length", "train_seq_len"), _LENGTH),
    **dict.fromkeys(("max_steps", "max_iters", "train_steps", "num_iterations"), _STEPS_ALL),
    **dict.fromkeys(("num_train_steps", "steps", "total_steps", "training_steps"), _STEPS_ALL),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "num_steps (steps, no epochs)"),
    "max_tokens": "num_steps (steps of batch_size · gradient_accumulation_steps · seq_len tokens)",
    **dict.fromkeys(("micro_batch_size", "per_device_train_batch_size", "mbs"), _BATCH),
    **dict.fromkeys(("per_device_batch_size", "local_batch_size", "device_batch_size"), _BATCH),
    "per_device_parallelism": _BATCH,
    **dict.fromkeys(("global_batch_size", "train_batch_size", "total_batch_size"), _GLOBAL),
    **dict.fromkeys(("accumulate_grad_batches", "grad_accum"), "gradient_accumulation_steps"),
    **dict.fromkeys(("grad_accum_steps", "accumulation_steps"), "gradient_accumulation_steps"),
    "gradient_accumulation_iters": "gradient_accumulation_steps",
    **dict.fromkeys(("train_file", "train_files", "data_path", "data_dir"), "train_data"),
    **dict.fromkeys(("dataset", "dataset_path", "dataset_name"), "train_data (parquet shards)"),
    **dict.fromkeys(("val_file", "validation_file", "eval_data", "valid_data"), "val_data"),
    **dict.fromkeys(("tokenizer", "tokenizer_dir", "tokenizer_name"), "tokenizer_path"),
    "hf_assets_path": "tokenizer_path",
    **dict.fromkeys(("model_name_or_path", "load_parameters_path"), "init_from"),
    **dict.fromkeys(("initial_checkpoint_dir", "pretrained", "init_weights"), "init_from"),
    **dict.fromkeys(("out_dir", "output_dir", "base_output_directory"), "checkpoint_dir"),
    **dict.fromkeys(("dump_folder", "save_dir", "ckpt_dir", "base_path"), "checkpoint_dir"),
    **dict.fromkeys(("save_steps", "save_interval", "checkpoint_period"), "save_every"),
    **dict.fromkeys(("checkpoint_interval", "ckpt_interval"), "save_every"),
    **dict.fromkeys(("save_total_limit", "max_to_keep", "keep_latest_k"), "keep_last_n"),
    **dict.fromkeys(("log_interval", "logging_steps", "log_period", "log_freq"), "log_every"),
    **dict.fromkeys(("eval_interval", "steps_per_eval", "eval_freq"), "eval_every"),
    **dict.fromkeys(("eval_iters", "max_eval_batches", "eval_batches"), "eval_steps (batches)"),
    **dict.fromkeys(("precision", "mixed_precision", "mp"), "dtype"),
    **dict.fromkeys(("bf16", "fp16", "compute_dtype"), "dtype (bfloat16, float16 or float32)"),
    **dict.fromkeys(("wandb", "wandb_log", "report_to", "enable_wandb"), "use_wandb"),
    "wandb_name": "wandb_run_name",
    "run_name": "wandb_run_name (and checkpoint_dir names the run's folder)",
    **dict.fromkeys(("random_seed", "data_seed", "init_weights_seed"), "seed"),
    "data_shuffle_seed": "seed (and window_order: shuffled)",
    **dict.fromkeys(("shuffle", "shuffle_data"), "window_order (sequential or shuffled)"),
    **dict.fromkeys(("dataloader_num_workers", "data_workers"), "num_workers"),
    **dict.fromkeys(("compile", "torch_compile"), "compile_model (everything is compiled anyway)"),
}
_UPDATE = {
    **dict.fromkeys(("ema", "ema_beta", "ema_rate"), "ema_decay"),
    **dict.fromkeys(("z_loss_weight", "z_loss_multiplier"), "z_loss"),
    **dict.fromkeys(("learning_rate", "max_lr", "peak_lr", "base_lr"), "optimizer.lr"),
    **dict.fromkeys(("gradient_clip", "max_grad_norm", "max_norm"), "optimizer.grad_clip"),
    **dict.fromkeys(("gradient_clip_val", "clip_grad", "clip_grad_norm"), "optimizer.grad_clip"),
    **dict.fromkeys(("gradient_clipping", "grad_norm_clip"), "optimizer.grad_clip"),
    "gradient_clipping_threshold": "optimizer.grad_clip",
    **dict.fromkeys(("wd", "adam_weight_decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("adam_beta1", "adam_b1", "b1"), "optimizer.beta1"),
    **dict.fromkeys(("adam_beta2", "adam_b2", "b2"), "optimizer.beta2"),
    "betas": "optimizer.beta1 (and optimizer.beta2)",
    "momentum": "optimizer.beta1 (or optimizer.muon_momentum)",
    **dict.fromkeys(("adam_epsilon", "adam_eps", "epsilon"), "optimizer.eps"),
    **dict.fromkeys(("optim", "opt_type", "optimizer_name"), "optimizer.type"),
    **dict.fromkeys(("lr_scheduler_type", "lr_schedule", "decay_type"), "scheduler.type"),
    **dict.fromkeys(("lr_scheduler", "schedule", "decay_lr"), "scheduler.type"),
    **dict.fromkeys(("warmup_iters", "warmup", "lr_warmup_steps"), "scheduler.warmup_steps"),
    "num_warmup_steps": "scheduler.warmup_steps",
    **dict.fromkeys(("warmup_ratio", "warmup_fraction", "lr_warmup_fraction"), _WARMUP),
    "warmup_steps_fraction": _WARMUP,
    **dict.fromkeys(("min_lr", "min_learning_rate"), _SHARE),
    **dict.fromkeys(("min_lr_factor", "lr_decay_ratio"), "scheduler.min_lr_ratio"),
    "cosine_learning_rate_final_fraction": "scheduler.min_lr_ratio",
    **dict.fromkeys(("lr_decay_iters", "decay_steps"), "num_steps (the rate falls until then)"),
    **dict.fromkeys(("data_parallel_replicate_degree", "ici_data_parallelism"), "mesh.data"),
    **dict.fromkeys(("data_parallel_shard_degree", "ici_fsdp_parallelism"), "mesh.fsdp"),
    **dict.fromkeys(("tensor_parallel_degree", "ici_tensor_parallelism", "tp"), "mesh.tensor"),
    "tensor_parallel_size": "mesh.tensor",
    **dict.fromkeys(("devices", "num_devices", "num_nodes"), "mesh (all devices are used)"),
}
_MODEL = {
    **dict.fromkeys(("n_layer", "n_layers", "num_hidden_layers", "depth"), "model.num_layers"),
    **dict.fromkeys(("base_num_decoder_layers", "num_decoder_layers"), "model.num_layers"),
    **dict.fromkeys(("n_embd", "hidden_size", "hidden_dim", "dim"), "model.d_model"),
    **dict.fromkeys(("base_emb_dim", "emb_dim", "embed_dim", "model_dim"), "model.d_model"),
    **dict.fromkeys(("n_head", "n_heads", "num_attention_heads"), "model.attention.num_heads"),
    **dict.fromkeys(("base_num_query_heads", "num_query_heads"), "model.attention.num_heads"),
    **dict.fromkeys(("n_kv_head", "n_kv_heads"), "model.attention.num_kv_heads"),
    **dict.fromkeys(("num_key_value_heads", "n_query_groups"), "model.attention.num_kv_heads"),
    "base_num_kv_heads": "model.attention.num_kv_heads",
    "head_size": "model.attention.head_dim",
    **dict.fromkeys(("sliding_window", "sliding_window_size"), "model.attention.window_size"),
    **dict.fromkeys(("sliding_window_pattern", "layer_types"), "model.attention.window_pattern"),
    **dict.fromkeys(("attention_dropout", "attn_dropout", "attn_pdrop"), "model.attention.dropout"),
    "attention_bias": "model.attention.bias",
    "bias": "model.attention.bias (and model.ffn.bias)",
    **dict.fromkeys(("flash_attention", "use_flash_attention"), "model.attention.use_flash_attn"),
    **dict.fromkeys(("hidden_dropout_prob", "resid_pdrop", "embd_pdrop"), "model.dropout"),
    **dict.fromkeys(("dropout_rate", "resid_dropout"), "model.dropout"),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), "model.max_seq_len"),
    **dict.fromkeys(("padded_vocab_size", "n_vocab"), "model.vocab_size"),
    **dict.fromkeys(("final_logit_softcapping", "final_logits_soft_cap"), "model.logit_softcap"),
    **dict.fromkeys(("tie_word_embeddings", "weight_tying"), "model.tie_embeddings"),
    "logits_via_embedding": "model.tie_embeddings",
    **dict.fromkeys(("initializer_range", "init_range"), "model.init_std"),
    **dict.fromkeys(
        ("remat", "remat_policy", "activation_checkpointing"), "model.gradient_checkpointing"
    ),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "d_ff"), "model.ffn.ffn_dim"),
    **dict.fromkeys(("base_mlp_dim", "mlp_dim", "intermediate_dim"), "model.ffn.ffn_dim"),
    **dict.fromkeys(("mlp_ratio", "ffn_multiplier"), "model.ffn.expansion_factor"),
    **dict.fromkeys(("hidden_act", "activation_function"), "model.ffn.activation"),
    **dict.fromkeys(("mlp_class_name", "mlp_activations"), "model.ffn.variant"),
    **dict.fromkeys(("rms_norm_eps", "norm_eps", "layer_norm_eps"), "model.norm.eps"),
    **dict.fromkeys(("layer_norm_epsilon", "normalization_layer_epsilon"), "model.norm.eps"),
    **dict.fromkeys(("norm_class_name", "norm_type"), "model.norm.type"),
    **dict.fromkeys(("rope_theta", "rope_max_timescale"), "model.positional.rope_base"),
    **dict.fromkeys(("position_embedding_type", "pos_emb"), "model.positional.encoding"),
}

OTHER_NAMES = {**_RUN, **_UPDATE, **_MODEL}
