"""Pages to look at, each one file without a network: what fits where. Plans and prices nothing itself."""
