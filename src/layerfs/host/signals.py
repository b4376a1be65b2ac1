"""Signals as Docker names them."""

from __future__ import annotations

import re
import signal

from layerfs.errors import BadRequest

_REALTIME = re.compile(r"RTM(IN\+|AX-)(\d{1,2})", re.ASCII)


def signal_number(text: str) -> int:
    """Return the number of a signal given as "TERM", "SIGTERM", "RTMIN+3" or "15"; raises `BadRequest`."""
    name = text.upper()
    if name.isascii() and name.isdigit() and 0 < int(name[:4]) < signal.NSIG:
        return int(name)
    name = name.removeprefix("SIG")
    if found := _REALTIME.fullmatch(name):  # what systemd in a container is stopped with
        offset = int(found[2])
        number = signal.SIGRTMIN + offset if found[1] == "IN+" else signal.SIGRTMAX - offset
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return int(number)
    elif f"SIG{name}" in signal.Signals.__members__:
        return signal.Signals[f"SIG{name}"].value
    raise BadRequest(f"invalid signal {text[:80]!r}: give a name such as TERM, or a number")
