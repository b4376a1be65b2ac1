"""The route of `docker export`: the whole tree of a mount, its cached writes included."""

from __future__ import annotations

from collections.abc import Generator

from layerfs.api import apart
from layerfs.api.routes import Call, route
from layerfs.errors import Conflict, NotFound, from_os_error
from layerfs.unixhttp.message import Answer, Stream

_TAR = (("Content-Type", "application/x-tar"),)


def export(call: Call) -> Answer:
    """Return the merged tree of a mount as a tar archive."""
    mount_id = call.row(call.names["name"]).id
    if not call.place.alone:
        return apart.answer(call)
    pieces = _exported(call, mount_id)
    next(pieces)
    return Stream(200, pieces, _TAR)


def _exported(call: Call, mount_id: str) -> Generator[bytes, None, None]:
    """Yield nothing once the tree can be read, and then the archive."""
    from layerfs.archive.flat import merged_tar

    call.mount(mount_id).flush()
    mount = call.store.mount(mount_id)
    archive = merged_tar(call.store.stack_of(mount, upper=True))
    try:
        first = next(archive)
        yield b""
        yield first
        yield from archive
    except OSError as error:
        raise from_os_error(error, f"export {mount.name}") from None
    try:
        call.store.mount(mount_id)
    except NotFound:
        raise Conflict(
            "the mount was removed while it was being exported: the archive is not whole"
        ) from None


ROUTES = (route("GET", "/containers/{name}/export", export),)
