"""Addresses: which of them only this machine reaches, and how a host and a port are joined."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches `host`. A name other than localhost is taken to be reached by others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address(host: str, port: int) -> str:
    """Join host and port; an IPv6 address goes into brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
