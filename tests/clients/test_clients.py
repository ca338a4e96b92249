"""What users write with the clients they know, run as they run it: every script ends well, or says what is wrong."""

from pathlib import Path

import pytest

from tests.clients.conftest import KEY
from tests.clients.environment import FOLDER, environment, run
from tests.e2e.conftest import Up

SCRIPTS = {"openai": "openai", "litellm": "litellm", "langchain-openai": "langchain_openai"}
CASES = [(client, script) for client, name in SCRIPTS.items() for script in sorted((FOLDER / name).glob("*.py"))]


@pytest.mark.parametrize(("client", "script"), CASES, ids=[f"{client}-{script.stem}" for client, script in CASES])
def test_a_script_of_a_client(client: str, script: Path, up: Up, guarded_url: str, tmp_path: Path) -> None:
    python = environment(client) / "python"
    # Isolated: neither this folder nor the project can be imported.
    done = run([python, "-I", script], up, tmp_path, GUARDED_URL=guarded_url, GUARDED_KEY=KEY)
    assert done.returncode == 0, done.stderr
