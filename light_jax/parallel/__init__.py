"""Several devices and several hosts.

devices    those that are there, and how much they hold
sharding   the mesh, and which device holds what
hosts      JAX's own runtime; what all processes do together
"""
