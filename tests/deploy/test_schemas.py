"""Kubernetes' own schemas, strictly: of the oldest release that is supported and of the newest there is."""

import copy

import kubernetes_validate
import pytest

from tests.deploy.manifests import Manifest, Manifests

VERSIONS = ("1.30", kubernetes_validate.latest_version())

# Not of Kubernetes itself; `make deploy-check` holds them against their operators' schemas.
CUSTOM = {"Certificate", "Issuer", "PodMonitor", "PrometheusRule", "ScaledObject", "ServiceMonitor"}


def validate(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(manifests: Manifests, version: str) -> None:
    checked = [manifest for manifest in manifests.all if manifest["kind"] not in CUSTOM]
    assert checked
    for manifest in checked:
        validate(manifest, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bad_one_is_not(rendered: dict[str, Manifests], version: str) -> None:
    misspelt = copy.deepcopy(rendered["gpu"].get("Deployment", "decode"))
    misspelt["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(misspelt, version)
    mistyped = copy.deepcopy(rendered["gpu"].get("Service", "gateway"))
    mistyped["spec"]["ports"][0]["port"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(mistyped, version)
