"""Which certificates and addresses a service starts with."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from common.settings import TlsSettings, WorkerSettings
from tests.certificates import Authority, PemFiles


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PemFiles:
    return Authority(tmp_path_factory.mktemp("authority")).issue("localhost")


def test_without_files_there_is_no_tls() -> None:
    assert TlsSettings().tls is None


def test_tls_from_variables(files: PemFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in files.settings.items():
        monkeypatch.setenv(f"STRUCTKV_{name.upper()}", str(path))
    monkeypatch.setenv("STRUCTKV_TLS_PEER_NAME", "localhost")
    assert TlsSettings().tls == files.tls("localhost")


def test_a_private_key_is_not_printed(files: PemFiles) -> None:
    assert "PRIVATE" not in repr(files.tls())


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_ca"])
def test_a_missing_file_of_the_three_is_refused(files: PemFiles, missing: str) -> None:
    settings = {name: path for name, path in files.settings.items() if name != missing}
    with pytest.raises(ValidationError, match="tls_cert, tls_key and tls_ca go together"):
        TlsSettings(**settings)


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_ca"])
def test_a_file_that_cannot_be_read_is_named(files: PemFiles, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}\n.*No such file"):
        TlsSettings(**(files.settings | {name: tmp_path / "missing.pem"}))


def test_another_certificates_key_is_refused(files: PemFiles, tmp_path: Path) -> None:
    other = Authority(tmp_path).issue("localhost")
    with pytest.raises(ValidationError, match=r"tls_cert and tls_key: .* not a certificate and its private key"):
        TlsSettings(**(files.settings | {"tls_key": other.key}))


def test_an_authority_without_a_certificate_is_refused(files: PemFiles) -> None:
    with pytest.raises(ValidationError, match=r"tls_ca: .* holds no certificate"):
        TlsSettings(**(files.settings | {"tls_ca": files.key}))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_worker_may_bind_to_loopback_in_plain_text(host: str) -> None:
    assert WorkerSettings(host=host).tls is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "worker"])
def test_a_worker_refuses_to_be_reached_in_plain_text(host: str) -> None:
    with pytest.raises(ValidationError, match=r"STRUCTKV_TLS_CERT.*STRUCTKV_ALLOW_PLAINTEXT"):
        WorkerSettings(host=host)


def test_two_ways_out_of_it(files: PemFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorkerSettings(host="0.0.0.0", **files.settings).tls is not None
    monkeypatch.setenv("STRUCTKV_ALLOW_PLAINTEXT", "true")
    assert WorkerSettings(host="0.0.0.0").tls is None
