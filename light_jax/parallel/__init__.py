"""Several devices and several hosts.

devices    the devices of the run, and their memory
sharding   the mesh, and which device holds what
hosts      JAX's runtime; what all processes do together
"""
