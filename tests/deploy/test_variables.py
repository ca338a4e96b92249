"""Settings in the manifests are settings that the services have, with values that they take."""

from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from services.decode.settings import DecodeSettings
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings
from tests.certificates import Authority
from tests.deploy.manifests import SERVICES, Manifests

SETTINGS: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "prefill": PrefillSettings,
    "decode": DecodeSettings,
}
# What STRUCTKV_CACHE is to common.model.source is no setting of a service.
NO_SETTING = {"STRUCTKV_CACHE"}


def variables(manifests: Manifests, service: str) -> dict[str, str]:
    pod = manifests.pod(service)
    found = manifests.environment(pod, pod.spec["containers"][0])
    return {name: value for name, value in found.items() if name.startswith("STRUCTKV_") or name == "REDIS_URL"}


@pytest.mark.parametrize("service", SERVICES)
def test_names_are_those_of_settings(manifests: Manifests, service: str) -> None:
    known = {f"STRUCTKV_{name.upper()}" for name in SETTINGS[service].model_fields} | {"REDIS_URL"}
    assert variables(manifests, service).keys() - NO_SETTING <= known


@pytest.mark.parametrize("service", SERVICES)
def test_the_service_takes_them(
    manifests: Manifests, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = variables(manifests, service)
    files = Authority(tmp_path).issue("structkv-worker")
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123456789abcdef\n")
    for name, value in given.items():
        if value:
            monkeypatch.setenv(name, value)
    for name, path in {**files.settings, "api_keys_file": keys}.items():
        if f"STRUCTKV_{name.upper()}" in given:
            monkeypatch.setenv(f"STRUCTKV_{name.upper()}", str(path))
    settings = SETTINGS[service]()
    assert settings.host == "0.0.0.0"
    assert (settings.tls is not None) == ("STRUCTKV_TLS_CERT" in given)


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_those_that_are_published(manifests: Manifests, service: str) -> None:
    [container] = manifests.pod(service).spec["containers"]
    published = {port["containerPort"] for port in container["ports"]}
    given = variables(manifests, service)
    asked = {int(given[name]) for name in ("STRUCTKV_PORT", "STRUCTKV_METRICS_PORT") if name in given}
    assert asked == published
    assert container["args"] == [service]


@pytest.mark.parametrize("service", SERVICES)
def test_the_end_comes_after_what_is_under_way(manifests: Manifests, service: str) -> None:
    pod = manifests.pod(service)
    given = variables(manifests, service)
    grace = float(given["STRUCTKV_SHUTDOWN_GRACE_SECONDS" if service == "gateway" else "STRUCTKV_GRACE_SECONDS"])
    before = pod.spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod.spec["terminationGracePeriodSeconds"] >= before + grace + 10


def test_no_answer_outlives_its_gateway(manifests: Manifests) -> None:
    given = variables(manifests, "gateway")
    assert float(given["STRUCTKV_SHUTDOWN_GRACE_SECONDS"]) >= float(given["STRUCTKV_REQUEST_TIMEOUT_SECONDS"])


def test_a_gateway_serves_until_it_is_known_to_end(manifests: Manifests) -> None:
    probe = manifests.pod("gateway").spec["containers"][0]["readinessProbe"]
    unseen = probe["periodSeconds"] * probe["failureThreshold"]
    assert float(variables(manifests, "gateway")["STRUCTKV_SHUTDOWN_DELAY_SECONDS"]) > unseen


@pytest.mark.parametrize("service", ["prefill", "decode"])
def test_the_store_takes_what_the_workers_leave_there(rendered: dict[str, Manifests], service: str) -> None:
    manifests = rendered["gpu-redis-ha"]
    [config] = [entry["data"]["redis.conf"] for entry in manifests.of("ConfigMap") if "redis.conf" in entry["data"]]
    [most] = [line.split()[1] for line in config.splitlines() if line.startswith("maxmemory ")]
    used = int(variables(manifests, service)["STRUCTKV_STORE_MEMORY_MIB"]) / 1024
    assert used < int(most.removesuffix("gb"))
    [server] = [c for c in manifests.pod("redis").spec["containers"] if c["name"] == "redis"]
    assert int(most.removesuffix("gb")) < int(server["resources"]["limits"]["memory"].removesuffix("Gi"))


def test_all_services_have_the_same_model(manifests: Manifests) -> None:
    assert len({variables(manifests, service)["STRUCTKV_MODEL"] for service in SERVICES}) == 1
