"""What a COPY or ADD copies: its sources found, by wildcards, links and patterns, before they are read."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layerfs.build import digests, wildcards
from layerfs.build.filtering import Rules, filtered, only
from layerfs.build.ignore import Ignore
from layerfs.build.sources import Disk, Item, Source, SourceDirectory, shown
from layerfs.build.walking import Place, Walk, follow, parts_of
from layerfs.errors import BadRequest, LayerfsError, NotFound, from_os_error
from layerfs.union.trees import remove_trees

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
class Pick:
    """One thing to be copied."""

    source: Source
    place: Place
    name: bytes
    """What it is called in the destination, if it is no directory."""
    kind: Literal["directory", "file", "archive"]
    rules: Rules = ()
    """What is left out of a directory."""

    @property
    def st(self) -> os.stat_result:
        """Its stat."""
        assert self.place.st is not None
        return self.place.st

    @contextmanager
    def above(self) -> Iterator[tuple[SourceDirectory, Item]]:
        """Yield the directory that it is in, and what it is there; not for a directory."""
        with Walk(self.source) as walk:
            for part in self.place.parts[:-1]:
                walk.down(part)
            yield walk.here, Item(self.place.parts[-1], self.st)

    @contextmanager
    def inside(self) -> Iterator[SourceDirectory]:
        """Yield the directory that it is, without what is left out of it."""
        with Walk(self.source) as walk:
            for part in self.place.parts:
                walk.down(part)
            yield filtered(walk.here, self.rules)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a job copies, found once for the digest and for the copy."""

    job: Job
    picks: tuple[Pick, ...]
    check: Check

    def digest(self, memory: digests.Memory | None = None) -> digests.Digest:
        """Return the digest of all that is selected. Unchanged files are not read if *memory* knows them.

        What the job says (destination, owner, mode, ...) is not in it. What has changed just now is looked at
        again some milliseconds later, when another change would show. Raises `LayerfsError`, and what the
        check raises.
        """
        digest = self._digest(memory)
        if digest.settles_ns:
            time.sleep(min(digest.settles_ns, digests.LONGEST_NS) / 1e9)
            digest = self._digest(memory)
        return digest

    def _digest(self, memory: digests.Memory | None) -> digests.Digest:
        digest = digests.Hasher(memory, self.check)
        try:
            for pick in self.picks:
                if pick.kind == "directory":
                    with pick.inside() as directory:
                        digest.add_directory(directory, pick.source, owners=self.job.chown is None)
                else:
                    with pick.above() as (directory, item):
                        digest.add_file(
                            directory, item, pick.name, pick.source, owners=self.job.chown is None
                        )
        except OSError as error:
            raise from_os_error(error, f"read {self.picks[0].source.called}") from None
        return digest.finish()


@contextmanager
def select(job: Job, source: Source, *, scratch: Path, check: Check = lambda: None) -> Iterator[Selection]:
    """Find what *job* copies from *source*; fetch URLs and repositories into the directory *scratch*.

    What was fetched is removed when the block ends. Raises `LayerfsError`: `NotFound` with one line for a
    source that is not there, `BadRequest` for a job that makes no sense; and what *check* raises.
    """
    with ExitStack() as stack:
        own = scratch / f"copy-{os.urandom(6).hex()}"
        finder = _Finder(job, source, own, stack, check)
        stack.callback(_remove, own)
        try:
            picks = tuple(finder.picks())
        except OSError as error:
            raise from_os_error(error, f"find what {job.word} copies from {source.called}") from None
        yield Selection(job, picks, check)


def _remove(directory: Path) -> None:
    if directory.exists():
        with suppress(LayerfsError):  # the scratch directory goes as a whole, later
            remove_trees(directory)


class _Finder:
    """Finds what one job copies."""

    def __init__(self, job: Job, source: Source, scratch: Path, stack: ExitStack, check: Check) -> None:
        self._job = job
        self._source = source
        self._scratch = scratch
        self._stack = stack
        self._check = check
        self._exclude: Rules = (Ignore(job.exclude),) if job.exclude else ()

    def picks(self) -> Iterator[Pick]:
        """Yield everything, in order."""
        from layerfs.build import fetching

        job = self._job
        for text in job.sources:
            self._check()
            if fetching.is_elsewhere(text):
                if job.word != "ADD":
                    raise BadRequest(f"{job.word} cannot fetch {fetching.without_secrets(text)}: use ADD")
                yield self._fetched(text)
            elif job.checksum is not None:
                raise BadRequest("--checksum is for URLs and git repositories: leave it out")
            elif job.parents:
                yield from self._with_parents(text)
            else:
                yield from self._matching(os.fsencode(text), text)
        yield from self._written()

    def _matching(self, path: bytes, text: str) -> Iterator[Pick]:
        """Yield what *path* matches, which is one thing unless it has wildcards."""
        path = _clamped(path)
        if not wildcards.is_pattern(path):
            yield self._pick(follow(self._source, path), _base(path), text, self._exclude)
            return
        fixed, rest = _split(path)
        for parts in _glob(self._source, follow(self._source, fixed), parts_of(rest), self._check):
            place = follow(self._source, b"/".join(parts))
            if place.st is None:
                raise self._missing(shown(b"/".join(parts)))
            name = parts[-1]
            if not stat.S_ISDIR(place.st.st_mode) and any(rule.matches(name) for rule in self._exclude):
                continue
            yield self._pick(place, name, text, self._exclude)

    def _pick(self, place: Place, name: bytes, text: str, rules: Rules) -> Pick:
        if place.st is None:
            raise self._missing(text)
        if stat.S_ISDIR(place.st.st_mode):
            return Pick(self._source, place, name, "directory", rules)
        pick = Pick(self._source, place, name, "file")
        unpack = self._job.unpack if self._job.unpack is not None else self._job.word == "ADD"
        return _recognized(pick) if unpack else pick

    def _missing(self, text: str) -> NotFound:
        return NotFound(f"{self._job.word} {text}: not found in {self._source.called}")

    def _with_parents(self, text: str) -> Iterator[Pick]:
        """Yield the directories from which `--parents` copies, with everything else left out of them."""
        path = os.fsencode(text)
        above, pivot, below = path.partition(b"/./")
        if not pivot:
            above, below = b"/", path
        above, below = _clamped(above), _clamped(below)
        rules = (*self._exclude, only([below])) if below else self._exclude
        if not wildcards.is_pattern(above) and not wildcards.is_pattern(below):
            found = follow(self._source, above + b"/" + below)
            if found.st is None:
                raise self._missing(text)
        for pick in self._matching(above, text):
            if pick.kind == "directory":
                yield Pick(pick.source, pick.place, pick.name, "directory", rules)

    def _fetched(self, text: str) -> Pick:
        from layerfs.build import fetching

        self._scratch.mkdir(mode=0o700, exist_ok=True)
        place = self._scratch / f"{len(os.listdir(self._scratch))}"
        place.mkdir(mode=0o700)
        job = self._job
        fetched = fetching.fetch(
            text, place, checksum=job.checksum, keep_git_dir=job.keep_git_dir, check=self._check
        )
        source = self._stack.enter_context(closing(Disk(fetched.directory, fetching.without_secrets(text))))
        if fetched.name is None:
            return Pick(source, follow(source, b""), b"", "directory", self._exclude)
        pick = Pick(source, follow(source, fetched.name), fetched.name, "file")
        return _recognized(pick) if job.unpack else pick

    def _written(self) -> Iterator[Pick]:
        """Yield the here-documents, as files that were made now."""
        if not self._job.files:
            return
        self._scratch.mkdir(mode=0o700, exist_ok=True)
        directory = self._scratch / "written"
        directory.mkdir(mode=0o700)
        source = self._stack.enter_context(closing(Disk(directory, "the Dockerfile")))
        moment = time.time_ns()
        for number, (text, content) in enumerate(self._job.files):
            name = os.fsencode(text)
            if b"/" in name or name in (b"", b".", b".."):
                raise BadRequest(f"the here-document {text!r} has no name that a file can have")
            file = directory / str(number)
            file.write_bytes(content)
            file.chmod(0o644)
            os.utime(file, ns=(moment, moment))
            yield Pick(source, follow(source, b"%d" % number), name, "file")


def _recognized(pick: Pick) -> Pick:
    from layerfs.build import archives  # takes 10 ms

    return archives.recognized(pick)


def _clamped(path: bytes) -> bytes:
    """Return *path* from the root, without `.` and `..`: of the root, that is the root, as docker has it."""
    kept: list[bytes] = []
    for part in parts_of(path):
        if part != b"..":
            kept.append(part)
        elif kept:
            kept.pop()
    return b"/".join(kept)


def _base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Split a pattern before the first name that has wildcards; what is before is taken at its word."""
    parts = path.split(b"/")
    first = next(number for number, part in enumerate(parts) if wildcards.is_pattern(part))
    return b"/".join(parts[:first]), b"/".join(parts[first:])


def _glob(source: Source, start: Place, patterns: list[bytes], check: Check) -> Iterator[tuple[bytes, ...]]:
    """Yield the paths below *start* whose names match *patterns*, one each; links are not followed."""
    if start.st is None or not stat.S_ISDIR(start.st.st_mode):
        return
    with Walk(source) as walk:
        for part in start.parts:
            walk.down(part)
        yield from _glob_in(walk, patterns, check)


def _glob_in(walk: Walk, patterns: list[bytes], check: Check) -> Iterator[tuple[bytes, ...]]:
    check()
    first, *rest = patterns
    for item in walk.here.items():
        if not wildcards.match(first, item.name):
            continue
        if not rest:
            yield (*walk.parts, item.name)
        elif stat.S_ISDIR(item.st.st_mode):
            walk.down(item.name)
            yield from _glob_in(walk, rest, check)
            walk.up()
