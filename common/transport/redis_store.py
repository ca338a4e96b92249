"""The store that prefill and decode share: Redis 7 or Valkey, through redis-py.

Every key has a time to live, from the command on that creates it. A store that fails is left alone for a moment, so
that requests go on inline at once instead of each waiting for it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from common.errors import StoreError
from common.pb import skeleton_pb2
from common.settings import WorkerSettings
from common.skeleton.spec import SkeletonSpec
from common.transport import stored

_CONNECT_SECONDS = 1.0
_COMMAND_SECONDS = 5.0
_REST_SECONDS = 2.0
"""How long a store that failed is not asked again; then one request tries it."""
_INDEX = f"{stored.PREFIX}reserved"

# The members of the index are `writer's prefix of layer keys|layers|bytes`, scored by when all their keys must have
# expired: a skeleton's time to live begins anew when it is complete. Making room takes the oldest first; whoever is
# still writing such a one learns it with the next layer, which is not taken any more.
_RESERVE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local member, bytes, most, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if bytes > most then return 0 end
local used = bytes
for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  used = used + tonumber(string.match(other, '(%d+)$'))
end
while used > most do
  local oldest = redis.call('ZPOPMIN', KEYS[1])[1]
  local prefix, layers, size = string.match(oldest, '^(.*)|(%d+)|(%d+)$')
  for layer = 0, layers - 1 do redis.call('UNLINK', prefix .. layer) end
  used = used - size
end
redis.call('ZADD', KEYS[1], now + 2 * ttl, member)
if redis.call('PTTL', KEYS[1]) < 2 * ttl then redis.call('PEXPIRE', KEYS[1], 2 * ttl) end
return 1
"""
_PUT = """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""
# KEYS are the index, the manifest and the layers.
_PUBLISH = """
local ttl = tonumber(ARGV[3])
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
for layer = 3, #KEYS do
  if redis.call('PEXPIRE', KEYS[layer], ttl) == 0 then return 0 end
end
local time = redis.call('TIME')
redis.call('SET', KEYS[2], ARGV[2], 'PX', ttl)
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + ttl, ARGV[1])
return 1
"""

logger = logging.getLogger(__name__)


class RedisStore:
    """Layers and whole skeletons under keys that expire. Every method raises StoreError when the server fails."""

    def __init__(self, client: Redis, *, ttl_seconds: float, max_bytes: int) -> None:
        """Take an open client; `max_bytes` bounds what all writers together keep."""
        self._client = client
        self._ttl_ms = int(ttl_seconds * 1000)
        self._max_bytes = max_bytes
        self._rests_until = 0.0

    @classmethod
    def open(cls, url: str, *, ttl_seconds: float, max_bytes: int) -> Self:
        """Return a store at a `redis://` or `rediss://` URL. It connects when it is first used."""
        # redis-py's own time limit for commands may swallow a cancellation before Python 3.12, so there is ours. One
        # more try is for connections that a server's restart has left behind in the pool.
        client = Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 1),
            decode_responses=False,
        )
        return cls(client, ttl_seconds=ttl_seconds, max_bytes=max_bytes)

    def admits(self) -> bool:
        """Tell whether to use the store now. After a failure it rests; then one request tries it for all."""
        now = time.monotonic()
        if now < self._rests_until:
            return False
        if self._rests_until:
            self._rests_until = now + _REST_SECONDS
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def reserve(self, skeleton: SkeletonSpec, writer: str, num_bytes: int) -> bool:
        """Make room for a skeleton, the oldest ones going first; tell whether it can fit at all."""
        member = self._member(skeleton, writer, num_bytes)
        async with self._guarded():
            reply = await self._client.eval(_RESERVE, 1, _INDEX, member, num_bytes, self._max_bytes, self._ttl_ms)
        return bool(reply)

    async def put_layer(
        self, skeleton: SkeletonSpec, writer: str, num_bytes: int, chunks: Sequence[skeleton_pb2.LayerChunk]
    ) -> skeleton_pb2.LayerReference:
        """Store one layer of a skeleton for which `num_bytes` were reserved; return the reference to it."""
        data = skeleton_pb2.Layer(chunks=chunks).SerializeToString()
        layer, member = chunks[0].layer, self._member(skeleton, writer, num_bytes)
        key = stored.layer_key(skeleton, writer, layer)
        async with self._guarded():
            taken = await self._client.eval(_PUT, 2, _INDEX, key, member, data, self._ttl_ms)
        if not taken:
            raise StoreError("the skeleton had to make way before it was complete")
        return skeleton_pb2.LayerReference(layer=layer, key=key, num_bytes=len(data))

    async def get_layer(self, reference: skeleton_pb2.LayerReference) -> skeleton_pb2.Layer:
        """Return a layer whose reference was checked. Raises SkeletonError if what is there is not a layer."""
        data = await self._get(reference.key, reference.num_bytes)
        if data is None or len(data) != reference.num_bytes:
            raise StoreError(f"the store lost {reference.key}")
        return stored.parse(skeleton_pb2.Layer, data)

    async def publish(
        self, skeleton: SkeletonSpec, writer: str, num_bytes: int, complete: skeleton_pb2.StoredSkeleton
    ) -> None:
        """Make a skeleton findable. All its keys expire together, one time to live from now."""
        keys = [_INDEX, stored.manifest_key(skeleton), *(reference.key for reference in complete.layers)]
        member = self._member(skeleton, writer, num_bytes)
        async with self._guarded():
            published = await self._client.eval(
                _PUBLISH, len(keys), *keys, member, complete.SerializeToString(), self._ttl_ms
            )
        if not published:
            raise StoreError("the store lost layers before the skeleton was complete")

    async def find(self, skeleton: SkeletonSpec) -> skeleton_pb2.StoredSkeleton | None:
        """Return the stored skeleton, if there is one. Raises SkeletonError if what is there is none."""
        data = await self._get(stored.manifest_key(skeleton), stored.MANIFEST_BYTES)
        return None if data is None else stored.parse(skeleton_pb2.StoredSkeleton, data)

    async def forget(self, skeleton: SkeletonSpec) -> None:
        """Make a skeleton unfindable; its layers expire."""
        async with self._guarded():
            await self._client.unlink(stored.manifest_key(skeleton))

    async def discard(self, skeleton: SkeletonSpec, writer: str, num_bytes: int) -> None:
        """Remove what a writer has put, and give its room back."""
        keys = [stored.layer_key(skeleton, writer, layer) for layer in range(skeleton.model.num_layers)]
        async with self._guarded(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.zrem(_INDEX, self._member(skeleton, writer, num_bytes))
            pipeline.unlink(*keys)
            await pipeline.execute()

    def _member(self, skeleton: SkeletonSpec, writer: str, num_bytes: int) -> str:
        return f"{stored.writer_prefix(skeleton, writer)}|{skeleton.model.num_layers}|{num_bytes}"

    async def _get(self, key: str, most: int) -> bytes | None:
        """Return a value, but never more than one byte above `most`; None if there is no such key."""
        async with self._guarded():
            data = await self._client.getrange(key, 0, most)
        assert not isinstance(data, str)  # responses are not decoded
        return data or None

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                yield
        except (RedisError, OSError, TimeoutError) as error:
            if not self._rests_until:
                logger.warning("the store fails, skeletons cross inline", extra={"error": _describe(error)})
            self._rests_until = time.monotonic() + _REST_SECONDS
            raise StoreError(f"the store failed: {_describe(error)}") from error
        if self._rests_until:
            logger.info("the store works again")
            self._rests_until = 0.0


def _describe(error: Exception) -> str:
    """Name an error by its kind and the server's first word, such as OOM; the rest may repeat what was sent."""
    return f"{type(error).__name__} {str(error).partition(' ')[0][:40]}"


@asynccontextmanager
async def open_store(settings: WorkerSettings) -> AsyncIterator[RedisStore | None]:
    """Open the store that a worker's settings name, if they name one."""
    if settings.transport == "inline" or settings.redis_url is None:
        yield None
        return
    store = RedisStore.open(
        settings.redis_url.get_secret_value(),
        ttl_seconds=settings.store_ttl_seconds,
        max_bytes=settings.store_memory_mib * 1024 * 1024,
    )
    try:
        yield store
    finally:
        await store.close()
