"""The outside systems, one module each."""
