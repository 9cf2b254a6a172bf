"""Where a worker listens, as the plan's addresses have it."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

ANY_IPV4: Final = "0.0.0.0"
ANY_IPV6: Final = "::"


def split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 address stands in brackets there, and comes back without."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def listening_hosts(host: str) -> tuple[str, ...]:
    """The hosts to bind to: `host` if it is an IP address or localhost, else all interfaces.

    A learner's own DNS name is where others find it, not where it listens: the name may not resolve yet as it starts.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host == "localhost":
            return (host,)
        return (ANY_IPV4, ANY_IPV6) if has_ipv6() else (ANY_IPV4,)
    return (host,)


def listening_address(address: str) -> str:
    """Where to listen for a plan's `host:port`: there, or on all interfaces where the host is a name."""
    host, port = split(address)
    hosts = listening_hosts(host)
    if hosts == (host,):
        return address
    # gRPC listens for both families on the wildcard of IPv6; not every node has that.
    return f"[{ANY_IPV6}]:{port}" if ANY_IPV6 in hosts else f"{ANY_IPV4}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches itself there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def has_ipv6() -> bool:
    """Whether this machine lets anybody listen on IPv6: some nodes have it switched off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind((ANY_IPV6, 0))
    except OSError:
        return False
    return True
