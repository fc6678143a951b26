"""Everything that trains (JAX)."""
