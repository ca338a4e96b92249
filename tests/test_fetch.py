"""`structkv fetch`, as an init container runs it."""

import asyncio
import sys
from pathlib import Path


async def fetch(model: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "fetch", "--model", model),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, said = await process.communicate()
    return process.returncode, printed.decode(), said.decode()


async def test_the_folder_is_printed() -> None:
    code, printed, _ = await fetch("smollm2-135m-instruct")
    assert code == 0
    assert (Path(printed.strip()) / "config.json").is_file()


async def test_a_model_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.gguf")
    code, _, said = await fetch(missing)
    assert code == 1
    assert missing in said
