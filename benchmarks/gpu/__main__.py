"""`python -m benchmarks.gpu PART DEVICE FILE`: one part, each row a line of JSON in the file as soon as it is known."""

import json
import sys
from pathlib import Path

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.scale import scale_of

if __name__ == "__main__":
    part, device, path = sys.argv[1:]
    with Path(path).open("a", encoding="utf-8") as file:
        for row in PARTS[part].measure(scale_of(device)):
            file.write(json.dumps(row.to_json()) + "\n")
            file.flush()
