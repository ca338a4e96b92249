"""A store that asks who is there: passwords, TLS, and certificates on both sides."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.errors import StoreError
from common.model.decoder import DecoderModel
from common.skeleton.spec import SkeletonSpec
from common.transport.redis_store import RedisStore
from tests.certificates import Authority, PemFiles
from tests.transport.conftest import StoreServer
from tests.transport.test_contract import PROMPT, SKELETON

PASSWORD = "a-long-password"


@pytest.fixture(scope="module")
def guarded() -> Iterator[StoreServer]:
    server = StoreServer("--requirepass", PASSWORD)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PemFiles:
    return Authority(tmp_path_factory.mktemp("authority")).issue("127.0.0.1")


@pytest.fixture
def skeleton(tiny) -> SkeletonSpec:
    model: DecoderModel = tiny("llama")
    return SkeletonSpec.of(model.spec, PROMPT, SKELETON)


async def answers(url: str, skeleton: SkeletonSpec) -> bool:
    """Tell whether a store at this URL does its work."""
    store = RedisStore.open(url, ttl_seconds=60, max_bytes=1 << 20)
    try:
        return await store.find(skeleton) is None and await store.reserve(skeleton, "writer", 1000)
    except StoreError:
        return False
    finally:
        await store.close()


@asynccontextmanager
async def tls_in_front(server: StoreServer, files: PemFiles) -> AsyncIterator[int]:
    """Take TLS off connections whose certificates are the authority's; the embedded server has none of its own."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass  # a client that is refused may reset it
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", server.port)
        pumps.add(asyncio.create_task(pump(reader, back_writer)))
        pumps.add(asyncio.create_task(pump(back_reader, writer)))

    listener = await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def test_a_password_opens_the_store(guarded: StoreServer, skeleton: SkeletonSpec) -> None:
    assert await answers(f"redis://:{PASSWORD}@127.0.0.1:{guarded.port}", skeleton)


@pytest.mark.parametrize("login", ["", ":wrong@"])
async def test_without_the_password_skeletons_go_inline(
    login: str, guarded: StoreServer, skeleton: SkeletonSpec, caplog: pytest.LogCaptureFixture
) -> None:
    assert not await answers(f"redis://{login}127.0.0.1:{guarded.port}", skeleton)
    assert "wrong" not in caplog.text.replace("WRONGPASS", "")


async def test_tls_with_certificates_on_both_sides(
    guarded: StoreServer, files: PemFiles, skeleton: SkeletonSpec, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path).issue("127.0.0.1")
    async with tls_in_front(guarded, files) as port:
        url = f"rediss://:{PASSWORD}@127.0.0.1:{port}"
        ours = f"ssl_ca_certs={files.ca}&ssl_certfile={files.cert}&ssl_keyfile={files.key}"
        assert await answers(f"{url}?{ours}", skeleton)
        assert not await answers(f"{url}?ssl_ca_certs={files.ca}", skeleton), "no certificate"
        assert not await answers(url, skeleton), "an authority that is not known"
        theirs = f"ssl_ca_certs={files.ca}&ssl_certfile={stranger.cert}&ssl_keyfile={stranger.key}"
        assert not await answers(f"{url}?{theirs}", skeleton), "a stranger's certificate"
