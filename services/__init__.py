"""The three services and the command that starts them."""
