"""Which addresses a request that a user asked for may go to."""

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Scheme = Literal["http", "https"]

PUBLIC_PORTS = frozenset({443, 8443})
PLAIN = "http://"
# What Python's tables call global in some of its versions, and is not for us.
REFUSED = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments; a cloud keeps its metadata there
    IPv4Network("168.63.129.16/32"),  # a cloud's service for its own machines
    IPv6Network("fec0::/10"),  # site-local, of old
    # Addresses of IPv4 stand in these, and a gateway may unpack them.
    IPv6Network("64:ff9b::/96"),  # NAT64
    IPv6Network("64:ff9b:1::/48"),  # NAT64, local use
    IPv6Network("2001::/32"),  # Teredo
    IPv6Network("2002::/16"),  # 6to4
)


@dataclass(frozen=True)
class Inside:
    """Networks of the operator's own that may be reached, and of those the ones by plain HTTP."""

    networks: tuple[Network, ...] = ()
    plain: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Inside":
        """Read networks with commas between; one that starts with http:// is a plain one too.

        Raises:
            ValueError: one is no network.
        """
        entries = [entry.strip() for entry in text.split(",") if entry.strip()]
        return cls(
            networks=tuple(ip_network(entry.removeprefix(PLAIN)) for entry in entries),
            plain=tuple(
                ip_network(entry.removeprefix(PLAIN))
                for entry in entries
                if entry.startswith(PLAIN)
            ),
        )

    def may_reach(self, address: Address, *, port: int, scheme: Scheme) -> bool:
        """Say whether a request may go there: any port inside, HTTPS to public hosts outside."""
        address = _unwrapped(address)
        if scheme == "http":
            return any(address in network for network in self.plain)
        if any(address in network for network in self.networks):
            return True
        return port in PUBLIC_PORTS and is_public(address)


def is_public(address: Address) -> bool:
    """Say whether an address is one of the Internet's, and no way around that."""
    address = _unwrapped(address)
    if any(address in network for network in REFUSED):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that one of IPv6 is only another spelling of."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
