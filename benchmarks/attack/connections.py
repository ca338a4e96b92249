"""Connections that are many, slow, silent, or never read."""

from collections.abc import Callable, Mapping

from benchmarks.attack.wire import Attack, Target, held, repeated


def _get(target: Target, path: str, *, key: bool = False) -> bytes:
    authorization = f"Authorization: Bearer {target.key}\r\n" if key else ""
    return f"GET {path} HTTP/1.1\r\nHost: {target.host}\r\n{authorization}\r\n".encode()


def _kept(request: bytes) -> bytes:
    """Return a request after which the connection goes on."""
    return request.replace(b"Connection: close\r\n", b"")


def _gateway(
    num_connections: int, first: Callable[[Target], bytes], each_second: bytes = b""
) -> Callable[[Target], Attack]:
    return lambda target: held(target.host, target.port, num_connections, first(target), each_second)


CONNECTIONS: Mapping[str, Callable[[Target], Attack]] = {
    "bodies-that-never-come": _gateway(512, lambda target: target.head("/v1/completions", 1000)),
    "bodies-of-a-byte-a-second": _gateway(512, lambda target: target.head("/v1/completions", 1000), b" "),
    "bodies-without-a-key": _gateway(800, lambda target: target.head("/v1/completions", 1000, key=False)),
    "heads-that-never-end": _gateway(890, lambda _: b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"),
    "heads-of-a-byte-a-second": _gateway(890, lambda _: b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX: ", b"a"),
    "metrics-never-read": _gateway(920, lambda target: _get(target, "/metrics") * 1000),
    "health-never-read": _gateway(920, lambda target: _get(target, "/health") * 5000),
    "openapi-never-read": _gateway(400, lambda target: _get(target, "/openapi.json", key=True) * 300),
    "answers-never-read": _gateway(
        100, lambda target: _kept(target.post("/tokenize", {"prompt": "a b " * 100_000, "return_token_strs": True}))
    ),
    "streams-never-read": _gateway(
        60, lambda target: _kept(target.completion(n=4, max_tokens=1000, ignore_eos=True, stream=True))
    ),
    "idle": _gateway(890, lambda _: b""),
    "idle-thousands": _gateway(4000, lambda _: b""),
    "idle-at-a-workers-metrics": lambda target: held(target.host, target.metrics_port, 1500, b""),
    "idle-at-a-workers-port": lambda target: held(target.host, target.worker_port, 1500, b""),
    "a-workers-metrics-never-read": lambda target: held(
        target.host, target.metrics_port, 500, _get(target, "/metrics") * 100
    ),
    "metrics-read": lambda target: repeated(
        target, [_get(target, "/metrics").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")], 32
    ),
    "wrong-keys": lambda target: repeated(target, [target.head("/v1/completions", 0, key=False)], 32),
}
