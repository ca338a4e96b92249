"""`structkv up` with everything locked: mutual TLS between the services, HTTPS and a key for clients."""

import ssl
from pathlib import Path

import httpx
import openai
import pytest

from tests.certificates import Authority
from tests.e2e.conftest import MODEL, start

KEY = "key-of-anna-0123456789"


def test_an_answer_through_mutual_tls_and_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    for name, path in (files.settings | files.http_settings).items():
        monkeypatch.setenv(f"STRUCTKV_{name.upper()}", str(path))
    monkeypatch.setenv("STRUCTKV_API_KEYS", KEY)
    running = start(tmp_path / "output", "--log-level", "debug")
    try:
        assert running.says("structkv is ready at https://", timeout_seconds=120), running.output.read_text()
        url = f"{running.url.replace('http', 'https')}/v1"
        trust = httpx.Client(verify=ssl.create_default_context(cafile=str(files.ca)))
        with openai.OpenAI(base_url=url, api_key=KEY, http_client=trust, max_retries=0) as client:
            answer = client.completions.create(model=MODEL, prompt="My heliotrope aardvark", max_tokens=4)
            assert answer.choices[0].text
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="none").models.list()
    finally:
        running.stop()
    said = running.output.read_text()
    assert '"tls": true' in said
    assert "answer ended" in said
    assert KEY not in said
    assert "heliotrope" not in said
