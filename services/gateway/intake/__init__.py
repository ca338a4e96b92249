"""From a request's bytes to its prompts' tokens, so that no body, however large or wicked, stalls anybody else."""
