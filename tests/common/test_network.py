"""What counts as reached by this machine alone."""

import pytest

from common.network import address, is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "", "worker", "localhost.example.com", "127.0.0.1.nip.io"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_an_ipv6_address_is_bracketed() -> None:
    assert address("::1", 5) == "[::1]:5"
    assert address("127.0.0.1", 5) == "127.0.0.1:5"
