"""How urgent a request may be is the operator's to say."""

from pathlib import Path

import pytest

from tests.gateway.conftest import StartGateway

ANNA, BERT, CARL = "key-of-anna-0123456789", "key-of-bert-0123456789", "key-of-carl-0123456789"


@pytest.mark.parametrize(
    ("key", "priority", "status"),
    [
        (ANNA, -10, 200),
        (ANNA, -11, 400),
        (BERT, 5, 200),
        (BERT, 4, 400),
        (CARL, -2, 200),
        (CARL, -3, 400),
        (CARL, 9, 200),
    ],
)
async def test_a_key_has_its_own_bound_or_everybodys(
    key: str, priority: int, status: int, tmp_path: Path, start_gateway: StartGateway
) -> None:
    (tmp_path / "keys").write_text(f"{ANNA} priority=-10\n{BERT} priority=5\n{CARL}\n")
    gateway = await start_gateway(api_keys_file=tmp_path / "keys", most_urgent_priority=-2)
    body = {"prompt": "Once", "priority": priority}
    headers = {"Authorization": f"Bearer {key}"}
    response = await gateway.http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == status
    if status == 400:
        assert response.json()["error"]["param"] == "priority"
        assert not gateway.decode.requests
    else:
        assert gateway.decode.request.priority == priority


async def test_a_key_with_a_less_urgent_bound_must_say_so(tmp_path: Path, start_gateway: StartGateway) -> None:
    (tmp_path / "keys").write_text(f"{BERT} priority=5\n")
    gateway = await start_gateway(api_keys_file=tmp_path / "keys")
    headers = {"Authorization": f"Bearer {BERT}"}
    response = await gateway.http.post("/v1/completions", json={"prompt": "Once"}, headers=headers)
    assert response.status_code == 200
    assert gateway.decode.request.priority == 5
