"""The proxy before the store asks for names that exist, and is ready only with a primary behind it."""

import re

import pytest

from tests.deploy.manifests import Manifests

CHOICES = ("gpu-redis-ha", "cpu-demo with redis-ha", "gpu in another namespace")


@pytest.fixture(params=CHOICES)
def store(request: pytest.FixtureRequest, rendered: dict[str, Manifests]) -> Manifests:
    return rendered[request.param]


def config(store: Manifests) -> dict[str, str]:
    [found] = [entry["data"] for entry in store.of("ConfigMap") if "haproxy.cfg" in entry["data"]]
    return found


def test_the_proxy_asks_for_whole_names(store: Manifests) -> None:
    """HAProxy's resolver knows no search domains."""
    servers = re.findall(r"^ +server \S+ (\S+):6379", config(store)["haproxy.cfg"], re.MULTILINE)
    nodes = store.get("StatefulSet", "redis")["spec"]
    assert servers == [f"redis-{number}.{nodes['serviceName']}.${{DOMAIN}}" for number in range(nodes["replicas"])]
    assert "export DOMAIN" in config(store)["start-proxy.sh"]
    assert store.get("Service", nodes["serviceName"])["spec"]["publishNotReadyAddresses"] is True


def test_the_proxy_is_ready_only_with_a_primary_but_lives_without(store: Manifests) -> None:
    [proxy] = store.pod("redis-proxy").spec["containers"]
    assert proxy["command"] == ["sh", "/etc/haproxy/start-proxy.sh"]
    paths = {kind: proxy[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/health", "readinessProbe": "/ready", "livenessProbe": "/health"}
    assert "{ path /ready } { nbsrv(redis) gt 0 }" in config(store)["haproxy.cfg"]
