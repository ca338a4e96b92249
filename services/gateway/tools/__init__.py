"""Functions that a model may call: how they get into its prompt, and their calls out of its answer."""
