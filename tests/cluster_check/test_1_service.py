"""One run of the service, in the order of a day: applied, asked, given a store, hurt, upgraded, without workers."""

import json
import time

import pytest

from tests.chaos.load import Request
from tests.cluster_check.client import Client
from tests.cluster_check.cluster import Namespace, until
from tests.cluster_check.images import PROXY

SERVICES = ("prefill", "decode", "gateway")
STORY = "The harbour of the town was quiet that morning. " * 40 + "Then the first ship"
SHORT = [Request(f"Question {number}. {STORY}", 0.0, seed=0, max_tokens=24) for number in range(3)]

# Two of each beside a store, on one node of two cores.
REQUESTS = """
- {op: replace, path: /spec/template/spec/containers/0/resources/requests/cpu, value: 100m}
- {op: replace, path: /spec/template/spec/initContainers/0/resources/requests/cpu, value: 100m}
"""
STORE_REQUESTS = """
- op: replace
  path: /spec/template/spec/containers/0/resources
  value: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 1Gi}}
"""
STORE = ("redis-0", "redis-1", "redis-2")


@pytest.fixture(scope="module")
def demo(images: None, namespace: Namespace) -> Namespace:
    """Return the namespace with cpu-demo as it is."""
    namespace.apply({"resources": ["../cpu-demo"]})
    namespace.rolled_out(*SERVICES)
    return namespace


@pytest.fixture(scope="module")
def grown(demo: Namespace) -> Namespace:
    """Return the namespace with two of each, and the store."""
    demo("scale", "deployment", "--all", "--replicas=0")  # there is no room for the old ones beside the new ones
    ours = {"labelSelector": "app.kubernetes.io/name=structkv", "kind": "Deployment"}
    demo.apply(
        {
            "resources": ["../cpu-demo"],
            "components": ["../../components/redis-ha"],
            "replicas": [{"name": name, "count": 2} for name in SERVICES],
            "images": [{"name": "haproxy", "newName": PROXY.partition(":")[0], "newTag": PROXY.partition(":")[2]}],
            "patches": [
                {"patch": REQUESTS, "target": ours},
                {"patch": STORE_REQUESTS, "target": {"kind": "StatefulSet"}},
                {"patch": STORE_REQUESTS, "target": {"kind": "Deployment", "name": "redis-proxy"}},
            ],
        }
    )
    demo.rolled_out("statefulset/redis", "redis-proxy", *SERVICES)
    return demo


def test_the_demo_answers_through_its_service(demo: Namespace, client: Client) -> None:
    answer = client.ask(SHORT[0])
    assert answer.get("text"), answer
    print(f"  {answer['text'][:60]!r} after {answer['seconds']:.1f} s")


def redis(namespace: Namespace, server: str, *command: str) -> str:
    """Run a command of Redis' in a server's pod, as that server's own."""
    told = ["sh", "-c", 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli --raw "$@"', "sh", *command]
    return namespace("exec", server, "--container", "redis", "--", *told, check=False)


def primaries(namespace: Namespace) -> list[str]:
    return [server for server in STORE if redis(namespace, server, "role").startswith("master")]


def keys(namespace: Namespace) -> int:
    """Return how many skeletons there are behind the store's name."""
    return int(redis(namespace, primaries(namespace)[0], "-h", "redis", "dbsize") or -1)


def test_the_store_elects_and_is_reached_by_name(grown: Namespace, client: Client) -> None:
    until(lambda: len(primaries(grown)) == 1, "one server is the primary", 120)
    assert len(grown.endpoints("redis")) == 2
    before = keys(grown)
    assert client.ask(SHORT[1]).get("text")
    assert keys(grown) > before


def test_the_store_survives_its_primary(grown: Namespace, client: Client) -> None:
    expected = client.ask(SHORT[1])["text"]
    [old] = primaries(grown)
    grown("delete", "pod", old, "--grace-period=0", "--force")
    assert client.ask(SHORT[1])["text"] == expected, "nobody waits for the store"
    until(lambda: len(found := primaries(grown)) == 1 and found != [old], f"another one than {old} is the primary", 120)
    until(lambda: redis(grown, old, "-h", "redis", "ping") == "PONG\n", "its name leads there", 60)
    before = keys(grown)
    until(lambda: client.ask(fresh()).get("text") and keys(grown) > before, "skeletons go there", 120)
    until(lambda: redis(grown, old, "role").startswith("slave"), f"{old} is back as a replica", 180)
    assert len(primaries(grown)) == 1


_asked = iter(range(1000))


def fresh() -> Request:
    """Return a prompt that was not asked before."""
    return Request(f"Number {next(_asked)}. {STORY}", 0.0, seed=0, max_tokens=4)


def test_a_primary_that_is_to_end_steps_down(grown: Namespace) -> None:
    [old] = primaries(grown)
    grown("delete", "pod", old, "--wait=false")
    until(lambda: [p for p in primaries(grown) if p != old], "another one is the primary before it has ended", 60)
    grown.rolled_out("statefulset/redis")


def test_the_store_comes_back_from_the_loss_of_all_its_pods(grown: Namespace, client: Client) -> None:
    grown("delete", "pods", "--selector", "app.kubernetes.io/name=redis", "--grace-period=0", "--force")
    assert client.ask(fresh()).get("text"), "nobody needs the store to be answered"
    grown.rolled_out("statefulset/redis", "redis-proxy")
    until(lambda: len(primaries(grown)) == 1, "one server is the primary", 120)
    until(lambda: client.ask(fresh()).get("text") and keys(grown) > 0, "skeletons go there", 120)


def test_without_a_primary_the_proxy_is_not_ready(grown: Namespace) -> None:
    grown("scale", "statefulset/redis", "--replicas=0")
    until(lambda: not grown.endpoints("redis"), "the proxies have left their Service", 120)
    assert len(grown.pods("redis-proxy")) == 2
    assert all(pod["status"]["containerStatuses"][0]["restartCount"] == 0 for pod in grown.pods("redis-proxy"))
    grown("scale", "statefulset/redis", "--replicas=3")
    until(lambda: len(grown.endpoints("redis")) == 2, "they are back", 300)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_decode_worker_killed_in_the_middle_of_a_stream(temperature: float, grown: Namespace, client: Client) -> None:
    request = Request(f"Killed at {temperature}. {STORY}", temperature, seed=5, max_tokens=400)
    until(lambda: len(grown.ready("decode")) == 2, "two decode workers serve")
    text = ""
    for number, event in enumerate(client.stream(request)):
        if number == 5:
            grown("delete", "pod", busy(grown), "--grace-period=0", "--force")
        text = event.get("text", "")
    assert text, event
    assert text == client.ask(request)["text"]
    assert failovers(grown) > 0


def busy(namespace: Namespace) -> str:
    """Return the decode worker that has the only sequence."""
    workers = namespace.ready("decode")
    [found] = [pod for pod in workers if metric(namespace, pod, ":9090", "structkv_kv_blocks_used")]
    print(f"  {found} is killed", flush=True)
    return found


def failovers(namespace: Namespace) -> float:
    return sum(metric(namespace, pod, ":8000", "structkv_decode_failovers_total") for pod in namespace.ready("gateway"))


def metric(namespace: Namespace, pod: str, port: str, name: str) -> float:
    """Return the sum of a pod's metric, as Prometheus would see it."""
    code = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1{port}/metrics').read().decode())"
    lines = namespace("exec", pod, "--", "python", "-c", code).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)


def test_all_are_restarted_under_load_without_a_failed_request(grown: Namespace, client: Client) -> None:
    until(lambda: all(len(grown.ready(name)) == 2 for name in SERVICES), "two of each serve")
    with client.load(SHORT, clients=2) as load:
        before = {pod["metadata"]["name"] for name in SERVICES for pod in grown.pods(name)}
        grown("rollout", "restart", *(f"deployment/{name}" for name in SERVICES))
        grown.rolled_out(*SERVICES)
        until(lambda: not before & everything(grown), "all pods of before have ended")
    print(f"  {len(load.events)} answers meanwhile, the slowest after {max(e['seconds'] for e in load.events):.0f} s")
    assert not load.failures
    assert len(load.events) > 5
    assert all(len(texts) == 1 for texts in load.texts.values()), load.texts


def everything(namespace: Namespace) -> set[str]:
    found = json.loads(namespace("get", "pods", "--output", "json"))["items"]
    return {pod["metadata"]["name"] for pod in found}


def test_without_prefill_workers_requests_wait_and_are_told(grown: Namespace, client: Client) -> None:
    grown("scale", "deployment/prefill", "--replicas=0")
    until(lambda: not grown.endpoints("prefill"), "no prefill worker is left", 180)
    time.sleep(15)  # longer than the gateways' probes take to notice anything
    assert len(grown.endpoints("gateway")) == 2
    refused = client.ask(fresh())
    print(f"  {refused['status']} after {refused['seconds']:.1f} s: {refused['error']}")
    assert refused["status"] == 503
    assert "no prefill worker" in refused["error"]
    assert refused["seconds"] > 1, "it waits for one to come"


def test_a_model_that_does_not_exist_is_named_where_one_looks(demo: Namespace) -> None:
    model = {"name": "model", "namespace": demo.name, "behavior": "merge"}
    demo.apply(
        {
            "resources": ["../cpu-demo"],
            "configMapGenerator": [model | {"literals": ["STRUCTKV_MODEL=/models/nowhere"]}],
            "patches": [{"patch": REQUESTS, "target": {"kind": "Deployment"}}],
        }
    )
    until(lambda: described(demo).count("/models/nowhere") >= 3, "pods of all three say why", 600)
    print("  " + next(line.strip() for line in described(demo).splitlines() if "/models/nowhere" in line)[:200])


def described(namespace: Namespace) -> str:
    """Return what `kubectl describe` says of why containers ended."""
    return namespace("describe", "pods", "--selector", "app.kubernetes.io/name=structkv")
