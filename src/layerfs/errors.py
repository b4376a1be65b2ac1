"""The errors that layerfs reports to people: one line, what to do about it, and a status.

Every error carries the HTTP status that the control API answers with; the command line prints the
line and exits with `exit_code`. Errors of the mounted filesystem itself are plain `OSError`s, whose
errno goes to the caller.
"""

from __future__ import annotations


class LayerfsError(Exception):
    """Something failed; `str(error)` is one line that says what and, where it helps, what to do."""

    http_status = 500
    exit_code = 1


class BadRequest(LayerfsError):
    """The request or its arguments make no sense (HTTP 400)."""

    http_status = 400


class UsageError(BadRequest):
    """The command line is wrong (exit code 2)."""

    exit_code = 2


class Unauthorized(LayerfsError):
    """A registry wants other credentials, or any at all (HTTP 401)."""

    http_status = 401


class Forbidden(LayerfsError):
    """The caller or the daemon lacks a permission (HTTP 403)."""

    http_status = 403


class NotFound(LayerfsError):
    """No such image, layer or mount (HTTP 404)."""

    http_status = 404


class Conflict(LayerfsError):
    """The thing exists already, or is in use (HTTP 409)."""

    http_status = 409


class StoreBusy(LayerfsError):
    """Another process holds the store's write lock; trying again shortly will do (HTTP 503)."""

    http_status = 503


class OtherStore(LayerfsError):
    """The engine has another store, or sees other mounts, than who asks (HTTP 421)."""

    http_status = 421


class NotImplementedHere(LayerfsError):
    """Docker can do it, layerfs does not (HTTP 501)."""

    http_status = 501


class NoSpace(LayerfsError):
    """The filesystem below is full (HTTP 507)."""

    http_status = 507


def from_os_error(error: OSError, doing: str) -> LayerfsError:
    """Return the `LayerfsError` for an `OSError` met while *doing* something ("import ./tree")."""
    import errno

    text = f"cannot {doing}: {error.strerror or error}"
    if error.filename:
        name = error.filename
        text += f": {name.decode(errors='replace') if isinstance(name, bytes) else name}"
    kinds: dict[int, type[LayerfsError]] = {
        errno.ENOENT: NotFound,
        errno.EACCES: Forbidden,
        errno.EPERM: Forbidden,
        errno.EEXIST: Conflict,
        errno.EBUSY: Conflict,
        errno.ENOSPC: NoSpace,
        errno.EDQUOT: NoSpace,
    }
    return kinds.get(error.errno or 0, LayerfsError)(text)
