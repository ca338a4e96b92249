"""Skeletons on their way through a store that prefill and decode share."""
