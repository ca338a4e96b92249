"""The HTTP around a request: who may ask, how much, for how long, and what an error looks like."""
