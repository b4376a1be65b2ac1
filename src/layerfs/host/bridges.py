"""Bridges of the kernel, as netdevice(7) and sysfs show them."""

from __future__ import annotations

import fcntl
import socket
import struct
from pathlib import Path

_SIOCSIFHWADDR = 0x8924
_ARPHRD_ETHER = 1
_NET_ADDR_SET = 3
"""Somebody gave the address, so the kernel leaves it alone."""


def members(name: str) -> list[str] | None:
    """Return which interfaces are in the bridge *name*, None where there is no such bridge."""
    try:
        return [path.name for path in Path("/sys/class/net", name, "brif").iterdir()]
    except OSError:
        return None


def keep_address(name: str) -> None:
    """Have the bridge *name* keep the hardware address that it has now, whoever joins and leaves it.

    Of itself it takes the lowest one among its members. Each time that changes, those who know the one before
    talk to nobody until they ask again, which is half a minute. May be repeated; does nothing where there is
    no such bridge. Raises `OSError`.
    """
    directory = Path("/sys/class/net", name)
    try:
        if int((directory / "addr_assign_type").read_text()) == _NET_ADDR_SET:
            return
        address = bytes.fromhex((directory / "address").read_text().strip().replace(":", ""))
    except FileNotFoundError:
        return
    request = struct.pack("16sH14s", name.encode(), _ARPHRD_ETHER, address)  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFHWADDR, request.ljust(40, b"\0"))
