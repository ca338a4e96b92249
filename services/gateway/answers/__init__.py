"""What comes back: tokens become text, and text OpenAI's objects."""
