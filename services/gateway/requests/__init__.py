"""What clients may ask for, and what becomes of it: OpenAI's bodies in, decode's requests out."""
