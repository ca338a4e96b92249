"""The OpenAI-compatible front: the only service that knows text."""
