"""Attention paths, one file each: what a path can run, what it costs, and how it runs."""
