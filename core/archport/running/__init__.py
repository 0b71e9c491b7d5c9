"""Run what was planned: tokenise, encode, pool. Decides nothing about paths, budgets or architectures."""
