"""An environment for each client, with the versions of its requirements file and nothing of ours."""

import hashlib
import os
import subprocess
import venv
from pathlib import Path

from tests.e2e.conftest import MODEL, Up

FOLDER = Path(__file__).parent
CACHE = FOLDER.parent.parent / ".cache" / "clients"
KEPT_VARIABLES = ("HOME", "LANG", "PATH", "TMPDIR")


def environment(client: str) -> Path:
    """Return the folder of programs of a client's environment, made anew when its requirements change."""
    requirements = FOLDER / "requirements" / f"{client}.txt"
    folder, digest = CACHE / client, hashlib.sha256(requirements.read_bytes()).hexdigest()
    installed = folder / "installed"
    if not installed.is_file() or installed.read_text() != digest:
        venv.create(folder, clear=True, with_pip=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", requirements], check=True)
        installed.write_text(digest)
    return folder / "bin"


def run(command: list[str | Path], up: Up, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a client's program in an empty folder, told of the service as its users tell it."""
    told = {"OPENAI_BASE_URL": f"{up.url}/v1", "OPENAI_API_KEY": "none", "MODEL": MODEL}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return subprocess.run(
        command,
        env=kept | told | offline | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
