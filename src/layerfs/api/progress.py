"""Answers that tell how far some work is, a JSON object a line as dockerd writes them, while it is done."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from layerfs.errors import LayerfsError, from_os_error

_QUIET = 0.5
"""Seconds after which an empty piece is yielded, so that a client that is gone is noticed."""
_OFTEN = 0.1
"""Seconds between two words about the same."""
_AHEAD = 256
"""Lines that the work may be ahead of the client."""
JSON_LINES = (("Content-Type", "application/json"),)


class Gone(Exception):
    """Nobody wants the answer any more."""


class Lines:
    """What the work says, on its way to the client; a `distribution.progress.Report`."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | Exception | None] = queue.Queue(_AHEAD)
        self._gone = threading.Event()

    def say(self, status: str, id: str = "", *, current: int = -1, total: int = 0) -> None:
        """Say *status*, of the layer *id* if it is given: *current* bytes of *total* are done.

        Without *current* it is about the whole. Raises `Gone`.
        """
        fields: dict[str, Any] = {"status": status}
        if current >= 0:
            fields["progressDetail"] = {"current": current, "total": total} if total else {}
        if id:
            fields["id"] = id
        self.put(fields)

    def put(self, fields: Mapping[str, Any]) -> None:
        """Say *fields*. Raises `Gone`."""
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        self._put(text.encode("utf-8", "replace") + b"\r\n")

    def notes(self, texts: Sequence[str]) -> None:
        """Say what people are to be told besides: layerfs's own commands do. Raises `Gone`."""
        for text in texts:
            self.put({"aux": {"Note": text}})

    def bytes_done(self, status: str | None) -> Callable[[int, int], None]:
        """Return what takes how many bytes are done, and are to be done in all (0: not known).

        It says so as *status*, if that is given, several times a second. It raises `Gone`.
        """
        said = 0.0

        def report(done: int, total: int) -> None:
            nonlocal said
            self.check()
            if status is not None and time.monotonic() - said > _OFTEN:
                said = time.monotonic()
                self.put({"status": status, "progressDetail": {"current": done, "total": total}})

        return report

    def layers_done(self, status: str | None) -> Callable[[Sequence[tuple[str, int, int]]], None]:
        """Return the same for layers: the digest of each, and its bytes. It may be called in any thread."""
        said: dict[str, int] = {}
        last = 0.0

        def report(state: Sequence[tuple[str, int, int]]) -> None:
            nonlocal last
            self.check()
            if status is None or time.monotonic() - last < _OFTEN:
                return
            last = time.monotonic()
            for digest, done, size in state:
                if done and said.get(digest) != done:
                    said[digest] = done
                    self.say(status, digest.partition(":")[2][:12], current=done, total=size)

        return report

    def check(self) -> None:
        """Raise `Gone` where nobody listens."""
        if self._gone.is_set():
            raise Gone

    def _put(self, item: bytes | Exception | None) -> None:
        while True:
            self.check()
            try:
                return self._queue.put(item, timeout=_QUIET)
            except queue.Full:
                continue

    def _run(self, work: Callable[[Lines], None]) -> None:
        end: Exception | None = None
        try:
            work(self)
        except Gone:
            return
        except Exception as error:
            end = error
        try:
            self._put(end)
        except Gone:
            if end is not None and not isinstance(end, (LayerfsError, OSError)):
                _log(end)

    def _pieces(
        self, thread: threading.Thread, item: bytes | Exception | None
    ) -> Generator[bytes, None, None]:
        try:
            yield b""  # the caller takes this one: from here on, closing the generator ends the work
            while item is not None:
                if isinstance(item, Exception):
                    yield error_line(_known(item))
                    return
                yield item
                while True:
                    try:
                        item = self._queue.get(timeout=_QUIET)
                        break
                    except queue.Empty:
                        yield b""
        finally:
            self._end(thread)

    def _end(self, thread: threading.Thread) -> None:
        self._gone.set()
        while thread.is_alive():
            thread.join(_QUIET)

    @classmethod
    def of(cls, work: Callable[[Lines], None]) -> Generator[bytes, None, None]:
        """Do *work* in a thread, and return what it says, which ends with what it raises.

        Raises what it raises before it has said anything. Where the result is closed, the work's next word
        raises `Gone`, and closing waits for its end.
        """
        lines = cls()
        thread = threading.Thread(target=lines._run, args=(work,), name="progress", daemon=True)
        thread.start()
        try:
            first = lines._queue.get()
            if isinstance(first, Exception):
                raise first
        except BaseException:
            lines._end(thread)
            raise
        pieces = lines._pieces(thread, first)
        next(pieces)
        return pieces


def error_line(error: LayerfsError) -> bytes:
    """Return the line that tells of an error after the status."""
    text = str(error)
    return (
        json.dumps({"errorDetail": {"message": text}, "error": text}, separators=(",", ":")).encode()
        + b"\r\n"
    )


def _known(error: Exception) -> LayerfsError:
    if isinstance(error, LayerfsError):
        return error
    if isinstance(error, OSError):
        return from_os_error(error, "answer the request")
    _log(error)
    return LayerfsError(f"internal error: {type(error).__name__}: {error}")


def _log(error: Exception) -> None:
    logging.getLogger(__name__).error("a request failed", exc_info=error)
