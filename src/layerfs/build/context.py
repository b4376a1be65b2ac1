"""The build context: where it comes from, its Dockerfile, and what .dockerignore keeps out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from layerfs.archive.limits import Limits
from layerfs.build.sources import Source


@dataclass(frozen=True, slots=True)
class Context:
    """A context that is ready to be read; a context manager, which closes it."""

    source: Source
    """What COPY and ADD copy from: what is ignored is not there."""
    dockerfile: str
    """The text of the Dockerfile."""
    dockerfile_name: str
    """What people call it."""
    directory: Path | None
    """The directory on disk, what is ignored included; None for a Dockerfile alone."""
    ignores: bool
    """Whether anything may be ignored: then `directory` has more in it than `source`."""

    def __enter__(self) -> Context:
        """Return the context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""


def from_directory(path: Path, dockerfile: Path | str | bytes | None = None) -> Context:
    """Return the directory *path* as a context.

    *dockerfile* is a name in it (str; None: `Dockerfile`, else `dockerfile`), a file anywhere (Path), or the text (bytes:
    what `-f -` read). `NAME.dockerignore` beside it counts in place of `.dockerignore`. Raises `LayerfsError`.
    """
    raise NotImplementedError


def from_tar(
    stream: BinaryIO,
    scratch: Path,
    dockerfile: str | bytes | None = None,
    *,
    limits: Limits = Limits(),  # noqa: B008
) -> Context:
    """Unpack what `docker build` sends (tar; gzip, bzip2, xz, zstd) into *scratch*/context, whatever it claims to be.

    A stream that is no archive is taken for a Dockerfile alone, as docker has it. As the client has done the ignoring, only
    the Dockerfile and .dockerignore are kept out, if .dockerignore says so. Raises `LayerfsError`.
    """
    raise NotImplementedError


def from_dockerfile(text: bytes) -> Context:
    """Return an empty context with the Dockerfile *text*. Raises `BadRequest` where that is no text."""
    raise NotImplementedError


def is_url(text: str) -> bool:
    """Tell whether *text* names a git repository or an archive elsewhere, and not a directory."""
    raise NotImplementedError


def from_url(
    url: str,
    scratch: Path,
    dockerfile: str | bytes | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> Context:
    """Fetch a git repository (`URL#REF:SUBDIRECTORY`), an archive or a Dockerfile into *scratch*. Raises `LayerfsError`."""
    raise NotImplementedError
