"""Attacks of one client on the real service, and what they do to another client."""
