"""The build context: where it comes from, its Dockerfile, and what .dockerignore keeps out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

# What takes archives apart is imported where there is one: most contexts are directories.
from layerfs.archive.limits import Limits
from layerfs.build import fetching, ignore
from layerfs.build.filtering import Filtered
from layerfs.build.ignore import Ignore
from layerfs.build.sources import Disk, Source, SourceDirectory, shown
from layerfs.build.walking import follow, opened
from layerfs.errors import BadRequest, NotFound, from_os_error
from layerfs.union.reading import read_at

DOCKERFILE = "Dockerfile"
_IGNORE = b".dockerignore"
_MOST = 16 << 20
"""Bytes that a Dockerfile or .dockerignore may have."""
_TEXT_TYPES = ("text/plain", "text/x-dockerfile")
_ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Context:
    """A context that is ready to be read; a context manager, which closes it."""

    source: Source
    """What COPY and ADD copy from: what is ignored is not there."""
    dockerfile: str
    """The text of the Dockerfile. Bytes that are not UTF-8 are surrogates (`surrogateescape`)."""
    dockerfile_name: str
    """What people call it."""
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Context:
        """Return the context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._stack.close()


def from_directory(path: Path, dockerfile: Path | str | bytes | None = None) -> Context:
    """Return the directory *path* as a context.

    *dockerfile* is a name in it (str; None: `Dockerfile`, else `dockerfile`), a file anywhere (Path), or the
    text (bytes: what `-f -` read). `NAME.dockerignore` beside it counts in place of `.dockerignore`. Links in
    the directory lead nowhere else. Raises `LayerfsError`.
    """
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(closing(Disk(path, "the build context", lasting=True)))
            return _opened(disk, dockerfile, stack, client_ignores=False)
        except OSError as error:
            raise from_os_error(error, f"read the build context {path}") from None


def _opened(
    source: Source,
    dockerfile: Path | str | bytes | None,
    stack: ExitStack,
    *,
    client_ignores: bool,
) -> Context:
    """Return the context of *source*; what is on *stack* is closed with it."""
    patterns: bytes | None = None
    if isinstance(dockerfile, bytes):
        name, text = "-", dockerfile
    elif isinstance(dockerfile, Path):
        outside = _read_outside(dockerfile)
        if outside is None:
            raise NotFound(f"cannot read the Dockerfile {dockerfile}: no such file")
        name, text = str(dockerfile), outside
        patterns = _read_outside(Path(f"{dockerfile}.dockerignore"))
    else:
        name, text = _find_dockerfile(source, dockerfile)
        patterns = _read(source, os.fsencode(name) + b".dockerignore")
    if patterns is None:
        patterns = _read(source, _IGNORE)
    rules = ignore.read(patterns) if patterns is not None else []
    if rules and client_ignores:
        left_out = [inner for inner in (name, _IGNORE.decode()) if Ignore(rules).matches(os.fsencode(inner))]
        rules = [_quoted(inner) for inner in left_out]
    if rules:
        source = Filtered(source, (Ignore(rules),))
    return Context(source, _decoded(text, name), name, stack.pop_all())


def _find_dockerfile(source: Source, wanted: str | None) -> tuple[str, bytes]:
    """Return the name and the text of the Dockerfile in *source*. Raises `NotFound`."""
    for name in (wanted,) if wanted is not None else (DOCKERFILE, DOCKERFILE.lower()):
        text = _read(source, os.fsencode(name))
        if text is not None:
            return name.lstrip("/"), text
    raise NotFound(f"the build context has no {wanted or DOCKERFILE}: name the Dockerfile with -f")


def _quoted(name: str) -> str:
    return "".join("\\" + letter if letter in "*?[]\\" else letter for letter in name)


def _read(source: Source, path: bytes) -> bytes | None:
    """Return what the regular file *path* holds, None where there is none. Raises `BadRequest`, `OSError`."""
    try:
        place = follow(source, path)
    except NotADirectoryError:
        return None
    if place.st is None:
        return None
    if not stat.S_ISREG(place.st.st_mode):
        raise BadRequest(f"{shown(path)} in the build context is not a file")
    with opened(source, place) as (fd, start):
        return _content(fd, shown(path), start, place.st.st_size)


def _read_outside(path: Path) -> bytes | None:
    """Return what the file *path*, of the person who builds, holds; None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, f"read {path}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadRequest(f"{path} is not a file")
        return _content(fd, str(path), 0, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _content(fd: int, name: str, start: int, size: int) -> bytes:
    if size > _MOST:
        raise BadRequest(f"{name} has more than {_MOST >> 20} MiB")
    return read_at(fd, size, start)


def _decoded(text: bytes, name: str) -> str:
    if b"\0" in text:
        raise BadRequest(f"{name}: it is not text: there is a zero byte in it")
    return text.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")


class _Unread:
    """A stream, a beginning of which has been looked at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._start = b""

    def look(self, size: int) -> bytes:
        """Return the next *size* bytes, fewer at the end, and leave them there."""
        while len(self._start) < size and (piece := self._stream.read(size - len(self._start))):
            self._start += piece
        return self._start

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes, none only at the end."""
        if self._start:
            piece, self._start = self._start[:size], self._start[size:]
            return piece
        return self._stream.read(size)


def from_tar(
    stream: BinaryIO,
    scratch: Path,
    dockerfile: str | bytes | None = None,
    *,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    check: Callable[[], None] = lambda: None,
) -> Context:
    """Take in what `docker build` sends (tar; gzip, bzip2, xz, zstd), data in a nameless file in *scratch*.

    A stream that is no archive is taken for a Dockerfile alone, as docker has it. As the client has left out
    what is ignored, only the Dockerfile and .dockerignore themselves are kept out, if .dockerignore says so.
    Raises `LayerfsError`, and what *check* raises.
    """
    from layerfs.archive.streams import Feed, decompressed
    from layerfs.archive.tar import Reader
    from layerfs.build.packed import Packed

    unread = _Unread(stream)
    if not _is_archive(unread.look(512)):
        text = unread.look(_MOST + 1)
        if len(text) > _MOST:
            raise BadRequest(f"the build context is no tar archive, and has more than {_MOST >> 20} MiB")
        return from_dockerfile(text)
    with ExitStack() as stack:
        try:
            packed = stack.enter_context(closing(Packed(scratch)))
            packed.fill(Reader(Feed(decompressed(unread.read, more=True)), needs_end=False), limits, check)
            return _opened(packed, dockerfile, stack, client_ignores=True)
        except OSError as error:
            raise from_os_error(error, "read the build context") from None


def _is_archive(start: bytes) -> bool:
    """Tell whether a stream that begins with *start* is an archive: compressed, or with a tar's header."""
    if start.startswith(_ARCHIVES) or (start[1:4] == b"\x2a\x4d\x18" and start[:1] >= b"\x50"):
        return True
    return len(start) == 512 and (start[257:262] == b"ustar" or b"\0" in start)


def from_dockerfile(text: bytes) -> Context:
    """Return an empty context with the Dockerfile *text*. Raises `BadRequest` where that is no text."""
    return Context(Nothing(), _decoded(text, DOCKERFILE), DOCKERFILE)


class Nothing:
    """A source with nothing in it: the context of a Dockerfile that comes alone, or a stage without files."""

    keeps_owners = lasting = may_change = False

    def __init__(self, called: str = "the build context, which is a Dockerfile alone") -> None:
        self.called = called
        self.digests: dict[tuple[int, int], bytes] = {}

    def root(self) -> SourceDirectory:
        """Return its root."""
        from layerfs.build.packed import EMPTY

        return EMPTY


def is_url(text: str) -> bool:
    """Tell whether *text* names a git repository, or an archive or Dockerfile elsewhere, and no directory."""
    return fetching.is_git(text) or fetching.is_http(text)


def from_url(
    url: str,
    scratch: Path,
    dockerfile: str | bytes | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> Context:
    """Fetch a git repository (`URL#REF:SUBDIRECTORY`), an archive or a Dockerfile into *scratch*.

    Raises `LayerfsError`, and what *check* raises.
    """
    if not fetching.is_git(url):
        file = scratch / "fetched"
        fetching.fetch_file(url, file, check=check)
        with file.open("rb") as stream:
            return from_tar(stream, scratch, dockerfile, check=check)
    from layerfs.build import git

    place = scratch / "git"
    with ExitStack() as stack:
        try:
            place.mkdir(mode=0o700)
            tree = git.fetch(url, place, check=check)
            disk = stack.enter_context(closing(Disk(tree, "the build context")))
            return _opened(disk, dockerfile, stack, client_ignores=False)
        except OSError as error:
            raise from_os_error(error, f"read the build context {fetching.without_secrets(url)}") from None
