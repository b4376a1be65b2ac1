"""COPY, ADD and WORKDIR: a new layer's tree, made at rest on top of the layers below.

As BuildKit has it, and where that says nothing, docker's classic builder; see `select` and `write`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from layerfs.build.digests import Memory
from layerfs.build.sources import Source
from layerfs.union.stack import Stack

Check = Callable[[], None]
"""Called often while work goes on; it stops the work by raising something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A COPY or ADD with variables put in."""

    word: str = "COPY"
    """`COPY` or `ADD`."""
    sources: tuple[str, ...] = ()
    """As in the Dockerfile. Those of ADD may be URLs and git repositories."""
    files: tuple[tuple[str, bytes], ...] = ()
    """Here-documents: name and content."""
    destination: str
    """As in the Dockerfile: how it ends counts."""
    workdir: str = "/"
    chown: str | None = None
    chmod: str | None = None
    parents: bool = False
    link: bool = False
    exclude: tuple[str, ...] = ()
    unpack: bool | None = None
    """`--unpack`; None: local archives of an ADD are unpacked, what comes from a URL is not."""
    checksum: str | None = None
    keep_git_dir: bool = False


@dataclass(frozen=True, slots=True)
class Digest:
    """What a COPY or ADD would copy: `text` goes into the key of the cache."""

    text: str
    """32 hexadecimal digits (XXH3-128): names, types, modes, owners as they will be, targets, attributes, data."""
    begun_ns: int
    """When its making began."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied."""

    files: int
    size: int
    """Bytes of regular files."""
    newest_ns: int
    """The last time (ctime) that something changed of what was read."""

    def is_as(self, digest: Digest) -> bool:
        """Tell whether nothing has changed since *digest* was made: else the key does not fit the layer."""


class Selection:
    """What a job copies: found once, for the digest and for the copy. Made by `select`."""

    def digest(self, memory: Memory | None = None) -> Digest:
        """Return the digest of all that is selected. Unchanged files are not read if *memory* knows them.

        What the job says (destination, chown, ...) is not in it. Raises `LayerfsError`.
        """
        raise NotImplementedError


@contextmanager
def select(job: Job, source: Source, *, scratch: Path, check: Check = lambda: None) -> Iterator[Selection]:
    """Find what *job* copies from *source*; fetch URLs and repositories into the directory *scratch*.

    What was fetched is removed when the block ends. Raises `LayerfsError`: `NotFound` with a line like
    docker's for a source that is not there, `BadRequest` for a job that makes no sense.
    """
    raise NotImplementedError


def write(
    selection: Selection,
    below: Stack | None,
    tree: Path,
    *,
    scratch: Path,
    epoch: int | None = None,
    check: Check = lambda: None,
) -> Copied:
    """Do the copy into the empty directory *tree*, which becomes a layer on top of *below*.

    *tree* gets the owner, mode and attributes of the root below. *scratch* is a directory on its filesystem (archives are
    unpacked there). No time in the layer is later than *epoch* (seconds; SOURCE_DATE_EPOCH). Nothing is synced.
    Raises `LayerfsError`, and what *check* raises: the tree is then to be thrown away.
    """
    raise NotImplementedError


def make_directory(
    path: str, user: str, below: Stack | None, tree: Path, *, epoch: int | None = None
) -> bool:
    """WORKDIR: make the directory *path* (absolute) and those above it, mode 0755, owned by *user* (as USER has it).

    Tells whether it was missing; if not, *tree* is as it was, and no layer is needed. Raises `LayerfsError`.
    """
    raise NotImplementedError
