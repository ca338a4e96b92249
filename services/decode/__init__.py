"""Decode: loads skeletons into its KV memory and streams tokens for all running requests together."""
