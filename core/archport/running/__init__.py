"""Run what was planned: contexts, steps, encoding, pooling. Decides nothing about paths, budgets or architectures."""
