"""The command lines of light_llm: llm-run and llm-preprocess."""
