"""What a model's folder says of its tokens. Needs no torch."""

import json
from pathlib import Path
from typing import Any

from common.errors import ModelLoadError


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """Return a file's object, or none of its own if it may be missing; raise ModelLoadError that names the file."""
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object")
    return content


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the tokens that end an answer, from wherever the folder says it first."""
    config = read_json(folder / "config.json")
    generation = read_json(folder / "generation_config.json", optional=True)
    for source in (generation, config, config.get("text_config") or {}):
        found = source.get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()
