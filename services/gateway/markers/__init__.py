"""The tokens by which a chat template speaks to its model, kept apart from the same words in what clients write."""
