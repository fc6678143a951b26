"""`python -m light_jax` is llm-train."""

from light_jax.cli.train import main

if __name__ == "__main__":
    main()
