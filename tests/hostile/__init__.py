"""Ten thousand requests that nobody should send."""
