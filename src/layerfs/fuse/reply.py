"""The edge between Python's errors and FUSE's: every request is answered, whatever happens, now or later."""

from __future__ import annotations

import errno
import logging
from collections.abc import Coroutine
from typing import Any

import trio

from layerfs.fuse import wire

_log = logging.getLogger(__name__)
_LARGEST_ERRNO = 511
"""The kernel takes no others, and would let the caller wait for ever."""


def errno_of(error: Exception, name: str) -> int:
    """Return what to answer where the request *name* has failed with *error*.

    An error that nobody foresaw is logged and answered EIO: one broken request must not take the mount down.
    """
    if isinstance(error, OSError):
        code = error.errno or errno.EIO
        return code if 0 < code <= _LARGEST_ERRNO else errno.EIO
    _log.error("%s failed", name, exc_info=error)
    return errno.EIO


class Later:
    """Requests that wait for something, each in a task of its own; the extension brings them."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self.beginning = 0
        """How many have not begun: none that comes after them may be read before they have."""

    def serve_in(self, nursery: trio.Nursery) -> None:
        """Have tasks in *nursery* from now on."""
        self._nursery = nursery

    def begin(self, request: bytes, work: Coroutine[Any, Any, Any]) -> None:
        """Answer *request* with what *work* comes to."""
        assert self._nursery is not None
        self.beginning += 1
        self._nursery.start_soon(self._answer, request, work)

    async def _answer(self, request: bytes, work: Coroutine[Any, Any, Any]) -> None:
        assert wire.extension is not None
        self.beginning -= 1
        try:
            answer = await work
        except Exception as error:
            answer = errno_of(error, getattr(work, "__qualname__", "a request"))
        wire.extension.answer(request, answer)


later = Later()
"""Those of this process, which serves one mount."""
