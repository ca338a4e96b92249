"""Imported by every Python that vLLM starts: hides the media libraries, as if they were not installed.

Text needs none of them, and builds for another torch than the installed one end vLLM's import. PyPI's are built for
CUDA, vLLM's CPU build wants a torch without.
"""

import sys

for _media in ("torchvision", "torchaudio", "torchcodec"):
    sys.modules[_media] = None  # type: ignore[assignment]
