"""How good a model's answers are, on small tasks that come with archport. Runs a loaded model; knows none by name."""
