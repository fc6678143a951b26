"""What a model is, and how a trained one is used (PyTorch).

    import light_llm

    model = light_llm.load_transformer("checkpoints/small/best")
    tokenizer = light_llm.load_tokenizer("data/my-corpus/tokenizer")
    sampling = light_llm.Sampling(max_tokens=100, temperature=0.8, seed=0)
    for piece in light_llm.generate_text(model, tokenizer, "Once upon a time", sampling):
        print(piece, end="", flush=True)

`generate` does the same from ids to ids. It is a module as well, which has `generate_batch` too.
"""

from typing import TYPE_CHECKING

from light_llm.lazy import public

if TYPE_CHECKING:
    from light_llm.checkpoint.loading import load_transformer
    from light_llm.errors import UserError
    from light_llm.generate import generate
    from light_llm.models.transformer import Transformer, TransformerConfig
    from light_llm.sampling import Sampling
    from light_llm.text import generate_text
    from light_llm.tokenizer import load_tokenizer

__version__ = "0.1.0"  # the distribution's, which pyproject.toml reads here

__all__ = [
    "Sampling",
    "Transformer",
    "TransformerConfig",
    "UserError",
    "__version__",
    "generate",
    "generate_text",
    "load_tokenizer",
    "load_transformer",
]

__getattr__, __dir__ = public(
    __name__,
    {
        "Sampling": "light_llm.sampling",
        "Transformer": "light_llm.models.transformer",
        "TransformerConfig": "light_llm.models.transformer",
        "UserError": "light_llm.errors",
        "generate_text": "light_llm.text",
        "load_tokenizer": "light_llm.tokenizer",
        "load_transformer": "light_llm.checkpoint.loading",
        "generate": "light_llm.generate",  # the module, which can be called
    },
)
