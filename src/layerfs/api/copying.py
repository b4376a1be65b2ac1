"""Routes of `docker cp`: what is at a path of a mount, and archives out of it and into it."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest, Forbidden
from layerfs.unixhttp.message import Answer, Response, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerfs.container.copying import PathStat
    from layerfs.store.model import Mount

_TAR = ("Content-Type", "application/x-tar")
_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
}
"""What Go's FileMode has for each kind of file."""
_BITS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


def look(call: Call) -> Answer:
    """Say what is at a path, in a header."""
    mount, path = _asked(call)
    if _is_for_another_process(call, mount):
        return _by_another_process(call)
    with _view(call, mount) as root, _source(root, mount, path) as (_, header):
        return Response(200, headers=(header,))


def read(call: Call) -> Answer:
    """Return an archive of what is at a path."""
    mount, path = _asked(call)
    if _is_for_another_process(call, mount):
        return _by_another_process(call)
    stack = ExitStack()
    with stack:
        root = stack.enter_context(_view(call, mount))
        fd, header = stack.enter_context(_source(root, mount, path))
        pieces = _pieces(fd, path, stack.pop_all())
    next(pieces)
    call.store.record_event("container", "archive-path", mount.id, _attributes(mount))
    return Stream(200, pieces, (_TAR, header))


def _pieces(fd: int, path: str, stack: ExitStack) -> Generator[bytes, None, None]:
    from layerfs.container import copying

    with stack:
        yield b""  # the caller takes this one: from here on, closing the generator closes the view
        yield from copying.archive(fd, path)


def write(call: Call) -> Answer:
    """Write the archive that comes with the call to a directory."""
    from layerfs.archive.streams import Feed, decompressed
    from layerfs.archive.tar import Reader
    from layerfs.container.extracting import Extractor

    mount, path = _asked(call)
    upload = call.request.upload
    if upload is None:
        raise BadRequest("no archive came with the request")
    if _is_for_another_process(call, mount):
        return _by_another_process(call)
    with _view(call, mount) as root:
        place = _directory(root, mount, path)
        owner = _owner(root, mount) if call.query.flag("copyUIDGID") else None
        overwrite = not call.query.flag("noOverwriteDirNonDir")
        with Extractor.in_root(root, place, owner=owner, overwrite=overwrite) as extractor:
            reader = Reader(Feed(decompressed(upload.read, more=True)), needs_end=False)
            for member in reader:
                extractor.add(member, reader)
            extractor.finish()
    call.store.record_event("container", "extract-to-dir", mount.id, _attributes(mount))
    return Response(200)


def _is_for_another_process(call: Call, mount: Mount) -> bool:
    """Return whether this process must not answer: it serves the mount, or would have to fork its daemon.

    The daemon of one mount has threads that use the store: a fork would take SQLite's state along.
    """
    from layerfs.container import view

    return call.serves(mount) or (call.place.live is not None and view.is_at_rest(mount))


def _by_another_process(call: Call) -> Answer:
    from layerfs.api import apart

    return apart.answer(call)


def _asked(call: Call) -> tuple[Mount, str]:
    mount = call.row(call.names["name"])
    path = call.query.get("path")
    if not path:
        raise BadRequest("bad parameter: path cannot be empty")
    if "\0" in path:
        raise BadRequest("bad parameter: path has a zero byte in it")
    return mount, path if path.startswith("/") else f"/{path}"


@contextmanager
def _view(call: Call, mount: Mount) -> Iterator[int]:
    from layerfs.container import view

    call.close()  # what is done meanwhile may take long, and uses stores of its own
    with view.opened(call.root, mount, call.place.launch) as root:
        yield root


def _directory(root: int, mount: Mount, path: str) -> str:
    """Return the directory *path* without links, if it may be written to."""
    from layerfs.container import copying
    from layerfs.container.rootfs import open_inside
    from layerfs.host import mountcalls

    try:
        fd = open_inside(root, path, os.O_PATH)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise BadRequest("extraction point is not a directory")
            of_path, of_root = (
                mountcalls.identify(b"/proc/self/fd/%d" % one, follow=True) for one in (fd, root)
            )
            in_root = of_path == of_root
            if os.fstatvfs(fd).f_flag & os.ST_RDONLY or (in_root and _is_read_only(mount)):
                what = "container rootfs" if in_root else "mounted volume"
                raise Forbidden(f"{what} is marked read-only")
        finally:
            os.close(fd)
        return copying.resolve(root, path)
    except OSError as error:
        raise copying.refused(error, path, mount.name) from None


def _is_read_only(mount: Mount) -> bool:
    """Return whether the tree of a container is read-only for its processes, which shows while they run."""
    from layerfs.container.stored import host_config

    return bool(mount.container and host_config(mount.container)["ReadonlyRootfs"])


def _owner(root: int, mount: Mount) -> tuple[int, int] | None:
    """Return the user of a container, to whom everything is to belong; None where none is set."""
    from layerfs.container.users import find_user

    if not (wanted := mount.config.get("User")):
        return None
    user = find_user(root, wanted)
    return user.uid, user.gid


@contextmanager
def _source(root: int, mount: Mount, path: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Open what is at *path*; yield its descriptor, and the header that tells of it."""
    from layerfs.container import copying

    with ExitStack() as stack:
        try:
            fd = stack.enter_context(copying.source(root, path))
            text = json.dumps(_shape(copying.describe(root, path, fd)), ensure_ascii=False)
        except OSError as error:
            raise copying.refused(error, path, mount.name) from None
        value = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
        yield fd, ("X-Docker-Container-Path-Stat", value)


def _shape(found: PathStat) -> dict[str, Any]:
    status = found.status
    mode = status.st_mode & 0o777 | _KINDS.get(stat.S_IFMT(status.st_mode), 0)
    mode |= sum(go for bit, go in _BITS.items() if status.st_mode & bit)
    seconds, fraction = divmod(status.st_mtime_ns, 10**9)
    moment = datetime.fromtimestamp(min(max(seconds, -62135596800), 253402300799), UTC)
    return {
        "name": found.name,
        "size": status.st_size,
        "mode": mode,
        "mtime": f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09}Z",
        "linkTarget": found.link_target,
    }


def _attributes(mount: Mount) -> dict[str, str]:
    return {"name": mount.name, "image": mount.image or ""}


ROUTES = (
    route("HEAD", "/containers/{name}/archive", look),
    route("GET", "/containers/{name}/archive", read),
    route("PUT", "/containers/{name}/archive", write, upload=True),
)
