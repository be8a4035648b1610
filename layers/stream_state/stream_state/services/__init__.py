"""The jobs of the entry points, one module each."""
