"""The KV skeleton: what is kept of a prompt, and how it travels."""
