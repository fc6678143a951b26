"""Writing checkpoints and resuming from them; their layout is `light_llm.checkpoint.layout`'s."""
