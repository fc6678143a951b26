"""What runs left in their folders: read, compared, drawn and cleaned. Imports no JAX."""
