"""From hidden states to answers: vectors, scores, labels, words and their order. Decides no path and no plan."""
