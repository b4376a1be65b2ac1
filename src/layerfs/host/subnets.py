"""Which IPv4 addresses the machine uses: those of its routes, as /proc/net/route lists them."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path


def routed(table: Path = Path("/proc/net/route")) -> list[IPv4Network]:
    """Return the subnets that the machine has routes to, but for the default route."""
    try:
        lines = table.read_text("ascii", errors="replace").splitlines()[1:]
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.split()
        with suppress(IndexError, ValueError):
            # The words are in the byte order of the machine, as they lie in memory.
            address, mask = (
                socket.inet_ntoa(struct.pack("=I", int(fields[column], 16))) for column in (1, 7)
            )
            if mask != "0.0.0.0":
                found.append(IPv4Network(f"{address}/{mask}", strict=False))
    return found
