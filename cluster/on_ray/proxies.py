"""Proxies of the environment, which lead to other computers and never to this one."""

from collections.abc import Mapping

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that say which hosts are reached without a proxy, with this computer among them."""
    return {name: _extended(environment.get(name, "")) for name in ("no_proxy", "NO_PROXY")}


def _extended(hosts: str) -> str:
    given = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join(dict.fromkeys((*given, *_LOOPBACK)))
