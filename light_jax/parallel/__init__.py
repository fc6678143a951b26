"""Several devices and several hosts.

sharding   the mesh, and which device holds what
hosts      JAX's own runtime; what all processes do together
"""
