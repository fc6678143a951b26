"""Several devices and several hosts.

devices    the devices of the run, and their memory
targets    devices that need not be here, and how to compile for them
cuda       an NVIDIA GPU that is not here, as XLA and jax want to know it
sharding   the mesh, and which device holds what
hosts      JAX's runtime; what all processes do together
"""
