"""Which keys a gateway starts with."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.gateway.settings import GatewaySettings
from tests.certificates import Authority

WORKERS = {"decode_workers": "a:1", "prefill_workers": "b:2"}
FIRST, SECOND = "key-of-anna-0123456789", "key-of-bert-0123456789"


def keys(**settings: object) -> list[str]:
    return [key.secret.get_secret_value() for key in GatewaySettings(**WORKERS, **settings).all_api_keys]


def test_without_keys_everybody_is_served() -> None:
    assert keys() == []


def test_keys_from_both_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# Bert's\n\n  {SECOND}\n")
    monkeypatch.setenv("STRUCTKV_API_KEYS", f"{FIRST}, {FIRST}x")
    monkeypatch.setenv("STRUCTKV_API_KEYS_FILE", str(file))
    assert keys() == [FIRST, f"{FIRST}x", SECOND]


def test_keys_are_never_printed(tmp_path: Path) -> None:
    settings = GatewaySettings(**WORKERS, api_keys=FIRST)
    assert FIRST not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("", "holds no key"),
        (" ", "holds no key"),
        (f"{FIRST},", "key 2 of 2 has fewer than 16"),
        ("sk-0123", "fewer than 16"),
        ("key of anna 0123456789", "printable ASCII"),
        ("schlüssel-0123456789", "printable ASCII"),
        ("changeme-changeme-changeme", "placeholder"),
        ("your-api-key-goes-here", "placeholder"),
        ("<the-key-of-anna-0123>", "placeholder"),
        ("${STRUCTKV_KEY_OF_ANNA}", "placeholder"),
        ("sk-xxxxxxxxxxxxxxxxxxxx", "placeholder"),
    ],
)
def test_a_weak_key_is_refused_by_name_and_not_quoted(value: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s)api_keys\n.*{fault}") as refusal:
        GatewaySettings(**WORKERS, api_keys=value)
    assert not value.strip(" ,") or value not in str(refusal.value)


def test_a_line_may_say_how_urgent_a_key_is(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{FIRST} priority=-10\n{SECOND}\tpriority=5 \n{FIRST}x\n")
    settings = GatewaySettings(**WORKERS, api_keys_file=file)
    assert [key.priority for key in settings.all_api_keys] == [-10, 5, None]
    assert keys(api_keys_file=file) == [FIRST, SECOND, f"{FIRST}x"]
    assert FIRST not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("# nothing\n", "holds no key"),
        ("short\n", "fewer than 16"),
        (f"{FIRST}\n{SECOND} priority=high\n", "key 2 is not 'KEY' or 'KEY priority=NUMBER'"),
        (f"{FIRST} urgent\n", "key 1 is not"),
    ],
)
def test_a_file_without_good_keys_is_refused(tmp_path: Path, content: str, fault: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ValidationError, match=f"(?s)api_keys_file\n.*{fault}"):
        GatewaySettings(**WORKERS, api_keys_file=file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"(?s)api_keys_file\n.*cannot read .*missing"):
        GatewaySettings(**WORKERS, api_keys_file=tmp_path / "missing")


def test_a_certificate_goes_with_its_key(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("localhost")
    assert GatewaySettings(**WORKERS, **files.http_settings).scheme == "https"
    with pytest.raises(ValidationError, match="http_tls_cert and http_tls_key go together"):
        GatewaySettings(**WORKERS, http_tls_cert=files.cert)
