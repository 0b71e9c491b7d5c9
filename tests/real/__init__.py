"""Checkpoints with real weights, against the references that answer them. Run by `make test-real`."""
