"""Our models in Hugging Face transformers.

    import light_llm.hf  # registers the class for model_type "light_llm"

    model = transformers.AutoModelForCausalLM.from_pretrained("my-model")

export          a checkpoint to a folder that transformers loads
place           that folder: written beside, checked, then renamed
weights         its safetensors, a shard at a time
tokenizer       its tokenizer, with the ids of ours
check           its logits, compared with those of the checkpoint
card            its README.md
push            the folder to the hub
configuration   LightLLMConfig: our config as transformers keeps one
modeling        LightLLMForCausalLM: our model as transformers calls one
cache           the cache of transformers as our layers ask for one
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "models in transformers need PyTorch; pip install 'light-llm-jax[torch]'"
    ) from _error

from transformers import AutoConfig, AutoModelForCausalLM

from light_llm.hf.configuration import LightLLMConfig
from light_llm.hf.modeling import LightLLMForCausalLM

__all__ = ["LightLLMConfig", "LightLLMForCausalLM"]

AutoConfig.register(LightLLMConfig.model_type, LightLLMConfig, exist_ok=True)
AutoModelForCausalLM.register(LightLLMConfig, LightLLMForCausalLM, exist_ok=True)
