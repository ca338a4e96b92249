"""Measures the speed of every part of the system, beside transformers and vLLM; `python -m benchmarks --help`."""
