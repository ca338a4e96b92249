"""`structkv probe`, as a container's health check runs it."""

import asyncio
import os
import sys
from pathlib import Path

from tests.certificates import Authority, PemFiles
from tests.gateway.conftest import grpc_worker


async def probe(target: str, files: PemFiles | None = None) -> tuple[int | None, str]:
    variables = (
        {} if files is None else {f"STRUCTKV_{name.upper()}": str(path) for name, path in files.settings.items()}
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "probe", target),
        env=os.environ | variables,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_in_plain_text() -> None:
    async with grpc_worker() as target:
        assert (await probe(target))[0] == 0
    assert (await probe(target))[0] == 1


async def test_over_tls(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    async with grpc_worker(tls=files.tls()) as target:
        assert (await probe(target, files))[0] == 0
        assert (await probe(target))[0] == 1


async def test_a_bad_certificate_is_named(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    files.ca.unlink()
    code, said = await probe("127.0.0.1:1", files)
    assert code == 2
    assert "tls_ca (--tls-ca, STRUCTKV_TLS_CA): cannot read" in said
