"""One module per family: which configs it claims and what it says of them. None of them imports mlx."""
