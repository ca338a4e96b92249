"""A bad setting stops the start and is named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.gateway.settings import GatewaySettings
from tests.certificates import Authority

WORKERS = {"decode_workers": "a:1", "prefill_workers": "b:2"}


def test_addresses_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCTKV_DECODE_WORKERS", "a:1, b:2")
    monkeypatch.setenv("STRUCTKV_PREFILL_WORKERS", "[::1]:3")
    settings = GatewaySettings()
    assert settings.decode_workers == ("a:1", "b:2")
    assert settings.prefill_workers == ("[::1]:3",)


def test_addresses_from_tuples() -> None:
    settings = GatewaySettings(decode_workers=("a:1", "b:2"), prefill_workers=("c:3",))
    assert settings.decode_workers == ("a:1", "b:2")
    assert settings.port == 8000
    assert settings.model_name == "smollm2-135m-instruct"


@pytest.mark.parametrize(
    "bad",
    [
        {"decode_workers": ""},
        {"prefill_workers": "nocolon"},
        {"decode_workers": "a:0"},
        {"decode_workers": "a:99999"},
        {"decode_workers": ":1"},
        {"prefill_workers": "a:1,a:1"},
        {"decode_workers": "::1:50051"},
        {"discovery_interval_seconds": 0},
        {"shutdown_delay_seconds": -1},
        {"kv_retention": 0},
        {"struct_retention": 1.5},
        {"method": "magic"},
        {"kv_tokens": -1},
        {"request_timeout_seconds": 0},
        {"no_such_setting": 1},
    ],
)
def test_a_bad_value_is_refused_by_name(bad: dict[str, object]) -> None:
    (name,) = bad
    with pytest.raises(ValidationError, match=name):
        GatewaySettings(**(WORKERS | bad))


def test_the_default_selection_follows_the_settings() -> None:
    selection = GatewaySettings(**WORKERS, kv_retention=0.3, floor_tokens=9).selection
    assert (selection.method, selection.kv_retention, selection.floor_tokens) == ("structkv", 0.3, 9)


def test_certificates_are_those_for_workers_and_for_clients(tmp_path: Path) -> None:
    assert GatewaySettings(**WORKERS).certificates == ()
    inside, outside = Authority(tmp_path / "inside").issue("gateway"), Authority(tmp_path / "outside").issue("api")
    settings = GatewaySettings(**WORKERS, **inside.settings, **outside.http_settings)
    assert settings.certificates == (inside.cert.read_bytes(), outside.cert.read_bytes())
