"""A run of the PyTorch trainer moves here, and back.

file        a file of torch.save
optimizer   torch.optim's state <-> optax's
tag         what a .state.pt holds <-> the state of a run
bridge      llm-convert state from-torch, to-torch
"""
