"""Spans say whose they are as OpenTelemetry's variables have it."""

import pytest

from common.trace_export import _resource


def test_the_standard_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _resource("gateway").attributes["service.name"] == "structkv-gateway"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=front,service.instance.id=pod-1")
    attributes = _resource("gateway").attributes
    assert (attributes["service.name"], attributes["service.instance.id"]) == ("front", "pod-1")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
    assert _resource("gateway").attributes["service.name"] == "named"
