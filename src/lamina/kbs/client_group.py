"""Who counts as one client: what is bounded is bounded by this, so that one cannot take the place
of all.
"""

from __future__ import annotations

import ipaddress

_NETWORK_BITS = 64


def client_group(address: str) -> str:
    """Return the address; of IPv6 the network of 64 bits, all of which one machine can use."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _NETWORK_BITS), strict=False))
