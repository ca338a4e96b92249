"""The store when its server dies, forgets, is full, or gives back what nobody put there."""

import asyncio
from collections.abc import Callable

import grpc
import pytest
from redis.asyncio import Redis

from common.errors import StoreError
from common.model.decoder import DecoderModel
from common.pb import skeleton_pb2
from common.skeleton.spec import SkeletonSpec
from common.transport import redis_store, stored
from common.transport.redis_store import RedisStore
from tests.conftest import StartWorkers, Workers
from tests.transport.conftest import TTL_SECONDS, StoreServer, open_store
from tests.transport.test_contract import PROMPT, SKELETON


def fallbacks(workers: Workers, reason: str) -> float:
    """Return what both workers have counted."""
    registries = (workers.prefill_registry, workers.decode_registry)
    labels = {"reason": reason}
    return sum(registry.get_sample_value("structkv_store_fallbacks_total", labels) or 0 for registry in registries)


@pytest.fixture
async def workers(store: RedisStore, start_workers: StartWorkers, tiny: Callable[[str], DecoderModel]) -> Workers:
    return await start_workers(tiny("llama"), store=store)


@pytest.fixture
def skeleton(tiny: Callable[[str], DecoderModel]) -> SkeletonSpec:
    return SkeletonSpec.of(tiny("llama").spec, PROMPT, SKELETON)


async def ask(workers: Workers) -> tuple[list[int], int]:
    """Return the answer's tokens and how many of the prompt's came from the store."""
    events = await workers.generate(workers.request(PROMPT, 6, SKELETON))
    return [token for event in events for token in event.token_ids], events[0].skeleton.cached_tokens


async def test_every_key_expires(workers: Workers, client: Redis) -> None:
    await ask(workers)
    keys = await client.keys("*")
    assert len(keys) == 8, "six layers, the skeleton, and the index"
    for key in keys:
        most = TTL_SECONDS * (2 if key == b"structkv:reserved" else 1)
        assert 0 < await client.pttl(key) <= most * 1000


async def test_a_server_that_is_away_costs_nothing_but_reuse(workers: Workers, server: StoreServer) -> None:
    expected, _ = await ask(workers)
    before = fallbacks(workers, "failed")
    server.kill()
    assert await ask(workers) == (expected, 0)
    assert fallbacks(workers, "failed") > before
    assert await ask(workers) == (expected, 0)


async def test_a_server_that_comes_back_is_used_again(
    workers: Workers, server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "_REST_SECONDS", 0.05)
    expected, _ = await ask(workers)
    server.kill()
    await ask(workers)
    server.start()
    await asyncio.sleep(0.1)
    assert await ask(workers) == (expected, 0), "the new server is empty"
    assert await ask(workers) == (expected, len(PROMPT))


async def test_a_server_that_dies_between_two_layers(
    workers: Workers, server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = await ask(workers)
    with_server = RedisStore.get_layer
    seen: list[int] = []

    async def dying(self: RedisStore, reference: skeleton_pb2.LayerReference) -> skeleton_pb2.Layer:
        seen.append(reference.layer)
        if len(seen) == 3:
            server.kill()
        return await with_server(self, reference)

    monkeypatch.setattr(RedisStore, "get_layer", dying)
    assert await ask(workers) == (expected, 0)
    assert seen[:3] == [0, 1, 2]


@pytest.mark.parametrize("layer", [0, 3, 5])
async def test_an_evicted_layer_costs_a_prefill(layer: int, workers: Workers, client: Redis) -> None:
    expected, _ = await ask(workers)
    (key,) = await client.keys(f"structkv:layer:*:{layer}")
    await client.delete(key)
    before = fallbacks(workers, "failed")
    assert await ask(workers) == (expected, 0)
    assert fallbacks(workers, "failed") == before + 1


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "swap", "other prompt", "no message"])
@pytest.mark.parametrize("what", ["layer", "skeleton"])
async def test_what_is_damaged_in_the_store_is_never_decoded(
    what: str, damage: str, workers: Workers, client: Redis
) -> None:
    expected, _ = await ask(workers)
    victims = sorted(await client.keys(f"structkv:{what}:*"))
    await workers.tokens(workers.request([*PROMPT[:-1], 11], 2, SKELETON))
    strangers = sorted(set(await client.keys(f"structkv:{what}:*")) - set(victims))
    data = await client.get(victims[0])
    assert data is not None
    damaged = {
        "flip": bytes(byte ^ (index == len(data) // 2) for index, byte in enumerate(data)),
        "cut": data[:-3],
        "grow": data + b"\0" * 3,
        "swap": await client.get(victims[-1]) if what == "layer" else data[::-1],
        "other prompt": await client.get(strangers[0]),
        "no message": b"\xff" * len(data),
    }[damage]
    await client.set(victims[0], damaged, keepttl=True)
    assert await ask(workers) == (expected, 0)
    assert await ask(workers) == (expected, len(PROMPT)), "a sound one has taken its place"


async def test_a_stored_skeleton_that_refers_elsewhere_is_refused(
    workers: Workers, client: Redis, skeleton: SkeletonSpec
) -> None:
    expected, _ = await ask(workers)
    await client.set("secret", "of somebody else", ex=60)
    key = stored.manifest_key(skeleton)
    complete = skeleton_pb2.StoredSkeleton.FromString(await client.get(key))
    complete.layers[2].key = "secret"
    await client.set(key, complete.SerializeToString(), keepttl=True)
    assert await ask(workers) == (expected, 0)


async def test_a_size_beyond_what_is_possible_is_not_fetched(
    workers: Workers, client: Redis, skeleton: SkeletonSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = await ask(workers)
    key = stored.manifest_key(skeleton)
    complete = skeleton_pb2.StoredSkeleton.FromString(await client.get(key))
    complete.layers[0].num_bytes = 1 << 30
    await client.set(key, complete.SerializeToString(), keepttl=True)
    fetched: list[int] = []
    original = RedisStore._get

    async def watch(self: RedisStore, key: str, most: int) -> bytes | None:
        fetched.append(most)
        return await original(self, key, most)

    monkeypatch.setattr(RedisStore, "_get", watch)
    assert await ask(workers) == (expected, 0)
    assert max(fetched) <= stored.MANIFEST_BYTES


async def test_room_is_made_by_the_oldest(
    server: StoreServer, client: Redis, start_workers: StartWorkers, tiny, skeleton: SkeletonSpec
) -> None:
    bound = sum(stored.layer_bound_bytes(skeleton, tokens) for tokens in skeleton.max_kept_tokens)
    async with open_store(server, max_bytes=2 * bound + 100) as store:
        workers = await start_workers(tiny("llama"), store=store)
        for last in (21, 22, 23):
            await workers.tokens(workers.request([*PROMPT[:-1], last], 2, SKELETON))
        assert len(await client.keys("structkv:layer:*")) == 2 * 6
        cached = [
            (await workers.generate(workers.request([*PROMPT[:-1], last], 2, SKELETON)))[0].skeleton.cached_tokens
            for last in (23, 22, 21)
        ]
        assert cached == [len(PROMPT), len(PROMPT), 0]


async def test_a_skeleton_larger_than_the_store_crosses_inline(
    server: StoreServer, client: Redis, start_workers: StartWorkers, tiny
) -> None:
    async with open_store(server, max_bytes=1000) as store:
        workers = await start_workers(tiny("llama"), store=store)
        before = fallbacks(workers, "full")
        (first, *_) = await workers.generate(workers.request(PROMPT, 2, SKELETON))
        assert first.skeleton.transport == "inline"
        assert fallbacks(workers, "full") == before + 1
        assert not await client.keys("*")


async def test_a_server_without_memory_is_not_relied_on(workers: Workers, client: Redis) -> None:
    expected, _ = await ask(workers)
    await client.flushall()
    await client.config_set("maxmemory", "1")
    await client.config_set("maxmemory-policy", "noeviction")
    try:
        assert await ask(workers) == (expected, 0)
    finally:
        await client.config_set("maxmemory", "256mb")
        await client.config_set("maxmemory-policy", "volatile-ttl")


async def test_a_failing_store_is_asked_by_one_request_at_a_time(server: StoreServer, skeleton: SkeletonSpec) -> None:
    async with open_store(server) as store:
        server.kill()
        assert store.admits()
        with pytest.raises(StoreError):
            await store.find(skeleton)
        assert not store.admits()
        store._rests_until = 1.0
        assert [store.admits() for _ in range(3)] == [True, False, False]
        server.start()
        await store.find(skeleton)
        assert store.admits()
        assert store.admits()


async def test_a_bound_holds_for_every_layer_that_is_sent(workers: Workers, client: Redis, skeleton) -> None:
    await ask(workers)
    for layer, tokens in enumerate(skeleton.max_kept_tokens):
        (key,) = await client.keys(f"structkv:layer:*:{layer}")
        assert await client.strlen(key) <= stored.layer_bound_bytes(skeleton, tokens)


async def test_a_damaged_result_costs_a_prefill(workers: Workers, client: Redis, skeleton: SkeletonSpec) -> None:
    expected, _ = await ask(workers)
    key = stored.manifest_key(skeleton)
    complete = skeleton_pb2.StoredSkeleton.FromString(await client.get(key))
    complete.result.hidden_state = complete.result.hidden_state[:-1] + b"\x01"
    await client.set(key, complete.SerializeToString(), keepttl=True)
    assert await ask(workers) == (expected, 0)
    assert await ask(workers) == (expected, len(PROMPT))


async def test_who_had_to_make_way_stores_no_more(server: StoreServer, client: Redis, skeleton: SkeletonSpec) -> None:
    async with open_store(server, max_bytes=1000) as store:
        chunk = skeleton_pb2.LayerChunk(layer=0, num_tokens=1)
        assert await store.reserve(skeleton, "first", 600)
        reference = await store.put_layer(skeleton, "first", 600, [chunk])
        assert await store.reserve(skeleton, "second", 600)
        assert not await client.exists(reference.key)
        with pytest.raises(StoreError, match="make way"):
            await store.put_layer(skeleton, "first", 600, [chunk])
        complete = skeleton_pb2.StoredSkeleton(layers=[reference])
        with pytest.raises(StoreError, match="lost"):
            await store.publish(skeleton, "first", 600, complete)
        assert await client.keys("structkv:[ls]*") == []


async def test_a_refused_prompt_takes_nobodys_room(
    server: StoreServer, client: Redis, start_workers: StartWorkers, tiny, skeleton: SkeletonSpec
) -> None:
    bound = sum(stored.layer_bound_bytes(skeleton, tokens) for tokens in skeleton.max_kept_tokens)
    async with open_store(server, max_bytes=bound + 100) as store:
        workers = await start_workers(tiny("llama"), store=store, max_queued_tokens=len(PROMPT))
        await ask(workers)
        blocker = workers.prefill.stream([5] * 900, SkeletonSpec.of(skeleton.model, [5] * 900, SKELETON))
        await anext(blocker)
        with pytest.raises(grpc.aio.AioRpcError):
            await workers.tokens(workers.request([*PROMPT[:-1], 77], 2, SKELETON))
        await blocker.aclose()
        assert (await ask(workers))[1] == len(PROMPT)
