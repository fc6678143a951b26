"""Whether the JAX and the PyTorch model are the same: llm-parity. Only this package runs both.

activations  every stage of a forward pass, in both models
checkpoint   a checkpoint's weights in both models, and tokens to try them on
reference    a plain PyTorch training loop
lockstep     that loop and llm-train's step, compared step by step
report       tables, verdicts and the picture
"""
