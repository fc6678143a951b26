"""LightLLMForCausalLM: our model as transformers calls one.

Letters: B batch, T position, S column so far, D model, V vocab.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from light_llm.hf.cache import views
from light_llm.hf.configuration import CODE, CODE_TEXT, LightLLMConfig
from light_llm.models.transformer.mask import past_span_of, span_of
from light_llm.models.transformer.model import WRITES_TO_RESIDUAL, Transformer

OF_THE_LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")
_FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
CACHE = "cache" if "cache" in _FIELDS else "past_key_values"  # the name since transformers 5.24
OF_GENERATE = ("cache_position",)  # passed by transformers 4, and follows from the cache


class LightLLMForCausalLM(PreTrainedModel, GenerationMixin):
    """Any model of ours, in every place that takes a causal language model of transformers.

    >>> import light_llm.hf
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("my-model")
    """

    config_class = LightLLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012  (transformers' own spelling)
    _tied_weights_keys = {  # noqa: RUF012
        "model.lm_head.weight": "model.tok_emb.weight"
    }
    _supports_sdpa = True
    _supports_attention_backend = False
    _can_compile_fullgraph = False

    def __init__(self, config: LightLLMConfig) -> None:
        super().__init__(config)
        self.model = Transformer(config.light_llm())
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, T, V], float32; the loss of predicting each next label too if there are any.

        Args:
            input_ids: [B, T]; they continue what is in `past_key_values`.
            attention_mask: [B, S], 0 for padding at the start or the end of a row.
            labels: [B, T], those at -100 do not count.
            logits_to_keep: logits of this many last positions alone, or of these positions.
            cache: `past_key_values`, as transformers calls it from 5.24 on.

        Raises:
            ValueError: an argument that this model has no use for, or more tokens than max_seq_len.
            UserError: a cache for a model that sees the future.
        """
        _refuse(kwargs)
        cfg = self.model.cfg
        past_key_values = cache if past_key_values is None else past_key_values
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if past_key_values is not None:
            past_span_of(cfg.attention)
        is_causal = span_of(cfg.attention).right == 0
        if self.model.document_end is not None and past_key_values is not None:
            raise ValueError(
                "model.attention.document_mask=True: a cache of transformers holds no documents; "
                "leave past_key_values out and use use_cache=False"
            )
        layers = views(
            past_key_values, cfg.num_layers, input_ids.shape[1], attention_mask, is_causal
        )
        hidden_BTD = self.model.hidden(input_ids, layers)  # type: ignore[arg-type]
        kept = logits_to_keep
        rows = slice(-kept if kept else None, None) if isinstance(kept, int) else kept
        logits_BTV = self.model.logits(hidden_BTD[:, rows])
        loss = None
        if labels is not None:
            of_loss = {key: kwargs[key] for key in OF_THE_LOSS if kwargs.get(key) is not None}
            loss = self.loss_function(logits_BTV, labels, self.config.vocab_size, **of_loss)
        kept_cache: dict[str, Any] = {CACHE: past_key_values if use_cache else None}
        output = CausalLMOutputWithPast(loss=loss, logits=logits_BTV, **kept_cache)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; refused for a model that sees the future.

        With `attention.document_mask` each token is computed from the whole text so far.
        """
        past_span_of(self.model.cfg.attention)
        if self.model.document_end is not None:
            kwargs.setdefault("use_cache", False)
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    @property
    def gradient_checkpointing(self) -> bool:
        """What `gradient_checkpointing_enable` and `_disable` set."""
        return bool(self.model.cfg.gradient_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        kept = self.model.cfg.gradient_checkpointing or True  # as it was trained: true or matmuls
        changes = {"gradient_checkpointing": kept if on else False}
        self.model.cfg = self.model.cfg.model_copy(update=changes)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.tok_emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.tok_emb = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.model.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.lm_head = new_embeddings  # type: ignore[assignment]

    def _init_weights(self, module: nn.Module) -> None:
        """Draw parameters that a file lacks, or new rows of the embedding, as our model does."""
        cfg = self.model.cfg
        names = {id(inner): name for name, inner in self.model.named_modules()}
        place = names.get(id(module), "tok_emb")  # an embedding of another size replaces it
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{place}.{leaf}"
            if getattr(parameter, "_is_hf_initialized", False):
                continue
            if "norm" in name:
                nn.init.ones_(parameter)
            elif leaf == "bias":
                nn.init.zeros_(parameter)
            elif name.startswith("pos_emb."):
                nn.init.normal_(parameter, std=0.02)
            else:
                residual = name.endswith(WRITES_TO_RESIDUAL)
                nn.init.normal_(parameter, std=cfg.residual_init_std if residual else cfg.init_std)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with the file that `trust_remote_code=True` imports."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_code(save_directory)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any):  # type: ignore[no-untyped-def]
        write_code(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: `save_pretrained` would then copy this file, no use without the rest."""


def write_code(folder: str | os.PathLike) -> None:
    """Put the file beside the weights that gives transformers our class."""
    Path(folder, CODE).write_text(CODE_TEXT, encoding="utf-8")


def _refuse(kwargs: dict[str, Any]) -> None:
    """A request that this model cannot meet is not dropped."""
    unknown = [
        key
        for key, value in kwargs.items()
        if key not in OF_THE_LOSS + OF_GENERATE and value is not None and value is not False
    ]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: this model takes input_ids, attention_mask, past_key_values, "
            "labels, use_cache and logits_to_keep; leave the rest out"
        )
