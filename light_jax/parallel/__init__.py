"""Several devices and several hosts.

devices    the devices of the run, and their memory
targets    devices that need not be here, and how to compile for them
sharding   the mesh, and which device holds what
hosts      JAX's runtime; what all processes do together
"""
