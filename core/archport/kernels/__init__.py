"""CUDA and Metal kernels of archport's own: source, launch, and where each is worth it. Knows no layers."""
