"""`structkv fetch`, as an init container runs it."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = ("config.json", "tokenizer.json", "model.safetensors")


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for; every file holds its own name."""

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            entries = [{"type": "file", "path": name, "size": len(name), "oid": name} for name in FILES]
            self._answer(json.dumps(entries))
        elif self.path.startswith("/api/"):
            self._answer(json.dumps({"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}))
        else:
            self._answer(self.path.rsplit("/", 1)[1])

    do_HEAD = do_GET

    def _answer(self, text: str) -> None:
        self.send_response(200)
        for name, value in {
            "ETag": f'"{text[:20]}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(text)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def fetch(model: str, *flags: str, **variables: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "fetch", "--model", model, *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | variables,
    )
    printed, said = await process.communicate()
    return process.returncode, printed.decode(), said.decode()


async def test_the_folder_is_printed() -> None:
    code, printed, _ = await fetch("smollm2-135m-instruct")
    assert code == 0
    assert (Path(printed.strip()) / "config.json").is_file()


@pytest.mark.parametrize(("flags", "fetched"), [((), set(FILES)), (("--no-weights",), set(FILES[:2]))])
async def test_weights_are_fetched_unless_they_are_not_wanted(
    flags: tuple[str, ...], fetched: set[str], hub: str, tmp_path: Path
) -> None:
    code, printed, said = await fetch("some/model", *flags, HF_ENDPOINT=hub, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    assert code == 0, said
    assert set(os.listdir(printed.strip())) == fetched


async def test_a_model_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.gguf")
    code, _, said = await fetch(missing)
    assert code == 1
    assert missing in said
