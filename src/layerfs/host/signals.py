"""Signals as Docker names them, and those that end a process."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def interrupted_by(numbers: Sequence[int], *, once: bool = False) -> Iterator[None]:
    """Let the signals *numbers* raise `KeyboardInterrupt` in the block: there is something to undo.

    With *once* those that come after the first are ignored, as they would cut that short. For the main thread
    of a process, which alone receives signals.
    """

    def interrupt(number: int, frame: object) -> None:
        if once:
            for one in numbers:
                signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
