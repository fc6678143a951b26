"""The command lines of light_jax: llm-train, llm-data, llm-parity and llm-convert."""
