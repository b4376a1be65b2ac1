"""How far something is, on one line of a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from layerfs.cli import render

_OFTEN = 0.1
"""Seconds between two changes of the line."""


class Progress:
    """Shows on a terminal how much is done of what is *doing* ("loading x.tar"); the line goes at its end."""

    def __init__(self, doing: str, *, wanted: bool = True) -> None:
        """Show it only if it is *wanted*, and standard error is a terminal."""
        self._doing = doing
        self.wanted = wanted and sys.stderr.isatty()
        self._shown = 0.0
        self._parts: dict[str, tuple[int, int]] = {}
        self._status = ""

    def __enter__(self) -> Progress:
        """Return the progress itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def bytes_done(self, done: int, total: int, status: str = "") -> None:
        """Show that *done* bytes of *total* are done; a total of 0 is not known."""
        if self.wanted and time.monotonic() - self._shown > _OFTEN:
            self._shown = time.monotonic()
            amount = render.size(done) + (f" of {render.size(total)}" if total else "")
            sys.stderr.write(f"\r\x1b[K{self._doing}: {status}{amount}")
            sys.stderr.flush()

    def following(self, told: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield what is *told*, but for how far it is, which is shown, and notes, which are passed on."""
        for fields in told:
            aux = fields.get("aux")
            if isinstance(aux, dict) and "Note" in aux:
                render.note(aux["Note"])
            elif "progressDetail" in fields:
                self._told(fields)
            else:
                yield fields

    def _told(self, fields: Mapping[str, Any]) -> None:
        detail = fields["progressDetail"] or {}
        status: str = fields["status"]
        if "current" not in detail:
            return
        if status != self._status:
            self._status = status
            self._parts.clear()
        self._parts[fields.get("id", "")] = detail["current"], detail.get("total", 0)
        done, total = (sum(part[at] for part in self._parts.values()) for at in (0, 1))
        named = fields.get("id") and status != "Loading layer"
        self.bytes_done(done, total, f"{status.lower()} " if named else "")
