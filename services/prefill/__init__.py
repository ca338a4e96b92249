"""Prefill: runs a prompt once and streams the skeleton of its KV cache."""
