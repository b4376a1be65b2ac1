"""The edge between Python's errors and FUSE's: every operation answers, whatever happens in it."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import pyfuse3

_log = logging.getLogger(__name__)
_LARGEST_ERRNO = 511
"""The kernel takes no others, and would let the caller wait for ever."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Counts(Protocol):
    """An object that counts the requests it answers, by name."""

    requests: dict[str, int]


_C = TypeVar("_C", bound=Counts)


def operation(
    function: Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]]:
    """Make a method of `Operations` count its calls and answer failures with their errno.

    An error that nobody foresaw is logged and answered EIO: one broken request must not take the
    mount down.
    """
    name = function.__name__

    @functools.wraps(function)
    async def answer(self: _C, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self.requests[name] += 1
        try:
            return await function(self, *args, **kwargs)
        except OSError as error:
            code = error.errno or errno.EIO
            raise pyfuse3.FUSEError(code if 0 < code <= _LARGEST_ERRNO else errno.EIO) from None
        except (pyfuse3.FUSEError, MemoryError):
            raise
        except Exception:
            _log.exception("%s failed", name)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return cast("Callable[Concatenate[_C, _P], Coroutine[Any, Any, _R]]", answer)
