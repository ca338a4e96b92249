"""Where there is no GPU, Triton's kernels are interpreted; it asks when they are defined, so before any import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
