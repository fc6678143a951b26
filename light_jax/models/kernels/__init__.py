"""Attention kernels of the hardware's makers, behind one function: `flash.attend`."""
