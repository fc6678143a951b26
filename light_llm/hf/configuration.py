"""LightLLMConfig: our config as transformers keeps one."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from light_llm.configcheck import validate
from light_llm.models.transformer.config import TransformerConfig

MODEL_TYPE = "light_llm"
CODE = "modeling_light_llm.py"
"""The file in a folder that gives transformers our class, with `trust_remote_code=True`."""
AUTO_MAP = {
    "AutoConfig": "modeling_light_llm.LightLLMConfig",
    "AutoModelForCausalLM": "modeling_light_llm.LightLLMForCausalLM",
}
CODE_TEXT = '''\
"""The model of this folder is a class of light-llm-jax."""

try:
    from light_llm.hf import LightLLMConfig, LightLLMForCausalLM
except ImportError as error:
    raise ImportError(
        "this model needs light-llm-jax, which is not installed here, or not with PyTorch; "
        "pip install 'light-llm-jax[torch]'"
    ) from error

__all__ = ["LightLLMConfig", "LightLLMForCausalLM"]
'''


class LightLLMConfig(PretrainedConfig):
    """Any model of ours.

    Args:
        transformer: the fields of a `TransformerConfig`, which alone describe the model. The other
            arguments are those of transformers.

    Raises:
        UserError: fields that break the rules of `TransformerConfig`.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers' own spelling)

    def __init__(self, transformer: dict[str, Any] | None = None, **kwargs: Any) -> None:
        cfg = validate(TransformerConfig, transformer or {}, f"{MODEL_TYPE}: transformer")
        self.transformer = cfg.model_dump()
        # a cache of transformers cannot say where a document began
        can_cache = cfg.attention.mask_type != "bidirectional" and not cfg.attention.document_mask
        self.use_cache = bool(kwargs.pop("use_cache", True)) and can_cache
        kwargs["tie_word_embeddings"] = cfg.tie_embeddings
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: `save_pretrained` would then copy this file, no use without the rest."""

    def light_llm(self) -> TransformerConfig:
        """The config of our model."""
        return TransformerConfig.model_validate(self.transformer)

    # What transformers asks of a config by these names.

    @property
    def vocab_size(self) -> int:
        return self.transformer["vocab_size"]

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:  # resize_token_embeddings sets it
        self.transformer["vocab_size"] = size

    @property
    def hidden_size(self) -> int:
        return self.transformer["d_model"]

    @property
    def num_hidden_layers(self) -> int:
        return self.transformer["num_layers"]

    @property
    def max_position_embeddings(self) -> int:
        return self.transformer["max_seq_len"]

    @property
    def num_attention_heads(self) -> int:
        return self.transformer["attention"]["num_heads"]

    @property
    def num_key_value_heads(self) -> int:
        return self.transformer["attention"]["num_kv_heads"]

    @property
    def head_dim(self) -> int:
        return self.transformer["attention"]["head_dim"]
