"""The command that copies files out of containers and mounts, and into them: cp."""

from __future__ import annotations

import base64
import json
import os
import posixpath
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfs.cli.names import may_be_path, mounted_on
from layerfs.cli.uploads import Pieces
from layerfs.errors import BadRequest, LayerfsError, NotFound, UsageError, from_os_error

if TYPE_CHECKING:
    from layerfs.client.client import Client
    from layerfs.unixhttp.message import Headers

_IS_DIRECTORY = 1 << 31
_IS_LINK = 1 << 27
"""Go's bits of a directory and of a symbolic link."""


@click.command("cp")
@click.option("-a", "--archive", is_flag=True, help="Give what is copied in to the user of the container.")
@click.option("-L", "--follow-link", is_flag=True, help="Where SOURCE is a link, copy what it leads to.")
@click.option("-q", "--quiet", is_flag=True, hidden=True)
@click.argument("source")
@click.argument("target")
@click.pass_obj
def cp_command(root: Path, source: str, target: str, archive: bool, follow_link: bool, quiet: bool) -> None:
    """Copy files between this machine and a container or mount, running or not.

    One of SOURCE and TARGET is NAME:PATH, the other a path here, or - for a tar archive from standard input
    or to standard output. NAME may be a mountpoint. As for cp(1), a directory goes into TARGET if that is
    one; DIRECTORY/. means what is in it.

    \b
    layerfs cp web:/etc/nginx ./conf
    layerfs cp ./site/. /srv/web:/srv/www
    layerfs cp web:/var/log - | tar t
    """
    from layerfs.client.client import Client

    client = Client.of(root)
    there, here = _parsed(client, source), _parsed(client, target)
    if there and here:
        raise UsageError("copying between containers is not supported: copy to this machine first")
    if there:
        _copy_out(_Place(client, *there), target, follow_link)
    elif here:
        _copy_in(source, _Place(client, *here), archive, follow_link)
    else:
        raise UsageError("neither is in a container: give one of them as NAME:PATH")


def _parsed(client: Client, text: str) -> tuple[str, str] | None:
    """Return the name and the path that *text* gives, None for a path here: `./a:b` is one, too.

    A mountpoint stands for the name of its mount, unless there is such a path here.
    """
    name, colon, path = text.partition(":")
    if not colon or not name:
        return None
    if may_be_path(name):
        is_path = text.startswith(("/", "."))
        if is_path and (not path.startswith("/") or os.path.isdir(os.path.dirname(text) or ".")):
            return None
        found = mounted_on(client, name)
        if found is None and is_path:
            return None
        name = found or name
    if not path:
        raise UsageError(f"{text!r} has no path: give NAME:PATH, such as {name}:/")
    return name, path


@dataclass(frozen=True, slots=True)
class _Place:
    """A path of a container."""

    client: Client
    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.name}:{self.path}"

    @property
    def route(self) -> str:
        return f"/containers/{self.name}/archive"

    def look(self, path: str) -> dict[str, Any] | None:
        """Return what is at *path*, None where there is nothing, or where asking for it will say why not."""
        try:
            return _stat(self.client.stream("HEAD", self.route, path=path).headers)
        except LayerfsError:
            return None


def _stat(headers: Headers) -> dict[str, Any]:
    value = next(value for name, value in headers if name.lower() == "x-docker-container-path-stat")
    found: dict[str, Any] = json.loads(base64.b64decode(value))
    return found


def _copy_out(source: _Place, target: str, follow_link: bool) -> None:
    path, name = source.path, _base(source.path)
    if follow_link and (found := source.look(path)) and found["mode"] & _IS_LINK:
        path = found["linkTarget"]
    answer = source.client.stream("GET", source.route, path=path)
    with closing(answer.chunks) as pieces:
        if target == "-":
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        is_directory = bool(_stat(answer.headers)["mode"] & _IS_DIRECTORY)
        directory, name = _place_here(target, name, is_directory)
        _extract(pieces, directory, _renamed(os.fsencode(_base(path)), os.fsencode(name)))


def _base(path: str) -> str:
    """Return the last part of *path* as archives of it begin: "." if it ends so, "/" for the root."""
    stripped = path.rstrip("/")
    return stripped.rpartition("/")[2] if stripped else "/"


def _place_here(target: str, name: str, is_directory: bool) -> tuple[str, str]:
    """Return the directory that gets what is called *name*, and what that is called there."""
    path = os.path.realpath(target)
    if os.path.isdir(path):
        return path, name
    if os.path.lexists(path) and is_directory:
        raise BadRequest(f"cannot copy a directory over {target}, which is a file: name another target")
    if target.endswith("/") and not is_directory:
        raise NotFound(f"there is no directory {target}: make it, or leave out the last slash")
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        raise NotFound(f"there is no directory {above}: make it first")
    return above, os.path.basename(path)


def _renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Return what gives names that begin with the part *old* the part *new* instead."""

    def rename(name: bytes) -> bytes:
        if old == b"/":
            rest = name.lstrip(b"/")
        elif name == old or name.startswith(old + b"/"):
            rest = name[len(old) :].lstrip(b"/")
        else:
            return name
        start = b"." if new == b"/" else new
        return start + b"/" + rest if rest else start

    return rename


def _extract(pieces: Generator[bytes, None, None], directory: str, rename: Callable[[bytes], bytes]) -> None:
    from layerfs.archive.streams import Feed
    from layerfs.archive.tar import Reader
    from layerfs.container.extracting import Extractor

    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"copy to {directory}") from None
    try:
        with Extractor.beneath(fd, directory) as extractor:
            reader = Reader(Feed(pieces))
            for member in reader:
                member.name = rename(member.name)
                if member.kind == "link":
                    member.target = rename(member.target)
                extractor.add(member, reader)
            extractor.finish()
    finally:
        os.close(fd)


def _copy_in(source: str, target: _Place, archive: bool, follow_link: bool) -> None:
    path = target.path
    found = target.look(path)
    if found and found["mode"] & _IS_LINK:
        path = found["linkTarget"]
        found = target.look(path)
    is_directory = bool(found and found["mode"] & _IS_DIRECTORY)
    if source == "-":
        if found and not is_directory:
            raise BadRequest(f"{target} is not a directory: an archive is unpacked into one")
        _send(target, path, Pieces(iter(lambda: sys.stdin.buffer.read(1 << 18), b"")), archive)
        return
    local = os.path.abspath(source) + ("/." if _base(source) == "." else "")
    if follow_link and os.path.islink(local):
        local = os.path.realpath(local)
    try:
        status = os.stat(local) if source.endswith("/") else os.lstat(local)
    except OSError as error:
        raise from_os_error(error, f"copy {source}") from None
    source_is_directory = stat.S_ISDIR(status.st_mode)
    if source.endswith("/") and not source_is_directory:
        raise BadRequest(f"{source} is not a directory: leave out the last slash")
    name = _base(source) if _base(source) != ".." else os.path.basename(local)
    if not is_directory:
        if found and source_is_directory:
            raise BadRequest(f"cannot copy a directory over {target}, which is a file: name another target")
        if not found and path.endswith("/") and not source_is_directory:
            raise NotFound(f"there is no directory {target}: make it, or leave out the last slash")
        path, name = posixpath.split(posixpath.normpath(posixpath.join("/", path)))
    with _local_archive(local, name) as pieces:
        _send(target, path, Pieces(pieces), archive)


@contextmanager
def _local_archive(path: str, name: str) -> Iterator[Iterator[bytes]]:
    from layerfs.container import copying

    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with copying.source(root, path) as fd, closing(copying.archive(fd, path, name)) as pieces:
            yield pieces
    except OSError as error:
        raise from_os_error(error, f"copy {path}") from None
    finally:
        os.close(root)


def _send(target: _Place, path: str, upload: Pieces, archive: bool) -> None:
    answer = target.client.stream(
        "PUT", target.route, upload=upload, path=path, noOverwriteDirNonDir=True, copyUIDGID=archive
    )
    for _ in answer.chunks:
        pass
