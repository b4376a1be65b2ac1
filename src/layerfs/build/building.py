"""What all stages of a build share: what was asked for, and what is made once, when it is first needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.build.base import Images
from layerfs.build.workplace import Workplace, workplace
from layerfs.errors import Forbidden, LayerfsError
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.build.cachefrom import Candidates
    from layerfs.build.context import Context
    from layerfs.build.outcome import Entry, Outcome
    from layerfs.build.progress import Progress
    from layerfs.distribution.credentials import Credentials
    from layerfs.mounting.request import MountRequest
    from layerfs.oci.platforms import Platform
    from layerfs.store.model import HistoryEntry

CACHE = "cache"
"""The directory in the store's root of what builds remember: the memory of digests, and cache mounts."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of a build, besides its context."""

    host: Mapping[str, Any]
    """Docker's `HostConfig` for the commands, complete: limits, network, names."""
    platform: Platform
    """The one to build for."""
    tags: tuple[str, ...] = ()
    target: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    pull: bool = False
    cache_from: tuple[str, ...] = ()
    only_cache_from: bool = False
    """Whether only the layers of `cache_from` count, if that names any: as the classic builder has it."""
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    ssh: Mapping[str, str] = field(default_factory=dict)
    """Sockets of agents, by their ids."""
    epoch: int | None = None
    """SOURCE_DATE_EPOCH: what the image says when it was made, in seconds."""
    host_network: bool = False
    """Whether a RUN may have the host's network, where the build has another one."""
    keep_failed: bool = False
    """Whether an image is made of the tree of a RUN that fails."""


class Building:
    """One build that goes on. For all its threads."""

    def __init__(
        self,
        root: Path,
        launch: Callable[[MountRequest], str],
        context: Context,
        options: Options,
        progress: Progress,
        credentials: Callable[[str], Credentials],
        build: tuple[str, Path],
        ends: ExitStack,
    ) -> None:
        """Begin; what has to be taken away at the end is given to *ends*. *build* is the store's `Build`."""
        self.root = root
        self.launch = launch
        self.context = context
        self.options = options
        self.progress = progress
        self.id, self.scratch = build
        self.images = Images(pull=options.pull, credentials=credentials)
        self._ends = ends
        self._lock = threading.Lock()
        self._work: Workplace | None = None
        self._usable: frozenset[str] | None = None
        self._candidates: Candidates | None = None
        self._stopped = threading.Event()
        self.outcomes: dict[int, Outcome] = {}
        """What the stages that are done have come to, by their places."""
        self._done = threading.Condition()
        self._error: BaseException | None = None

    def store(self) -> Store:
        """Return a store of the build for the calling thread, which closes it."""
        return Store(self.root, build=self.id)

    def work(self) -> Workplace:
        """Return the place of what the build has outside the store; raises `LayerfsError`."""
        if os.geteuid() != 0:
            raise Forbidden("RUN needs root, for its mounts and containers: use sudo")
        with self._lock:
            if self._work is None:
                self._work = self._ends.enter_context(workplace(self.root))
            return self._work

    def created(self) -> datetime:
        """Return the time of what is made now."""
        if self.options.epoch is not None:
            return datetime.fromtimestamp(self.options.epoch, UTC)
        return datetime.now(UTC)

    def may_use(self, store: Store, layer: str | None) -> bool:
        """Return whether a step with *layer* may be taken from the cache, where that is wanted at all."""
        options = self.options
        if not (options.only_cache_from and options.cache_from):
            return True
        with self._lock:
            if self._usable is None:
                found: set[str] = set()
                for name in options.cache_from:
                    with suppress(LayerfsError):  # as dockerd: one that is not there has nothing in it
                        found.update(store.resolve(name).layers)
                self._usable = frozenset(found)
            return layer in self._usable

    def candidate(
        self, store: Store, base: str | None, entries: Sequence[Entry], created_by: str
    ) -> HistoryEntry | None:
        """Return a step of one of the images of `cache_from` that may be taken for the next one, if any."""
        options = self.options
        if options.no_cache or options.only_cache_from or not options.cache_from:
            return None
        from layerfs.build.cachefrom import Candidates

        with self._lock:
            if self._candidates is None:
                self._candidates = Candidates(self)
            return self._candidates.find(store, base, entries, created_by)

    @property
    def memory(self) -> Path:
        """The file of the memory of digests."""
        from layerfs.build.digests import NAME

        return self.root / CACHE / NAME

    def check(self) -> None:
        """Raise what is to end the build, if anything."""
        if self._stopped.is_set():
            raise Stopped
        self.progress.check()

    # What stages tell each other

    def finish(self, stage: int, outcome: Outcome) -> None:
        """Note what a stage has come to."""
        with self._done:
            self.outcomes[stage] = outcome
            self._done.notify_all()

    def fail(self, error: BaseException) -> None:
        """Note what has gone wrong with a stage; the first counts, and ends the others."""
        with self._done:
            if self._error is None or isinstance(self._error, Stopped):
                self._error = error
            self._stopped.set()
            self._done.notify_all()

    def outcome(self, stage: int) -> Outcome:
        """Wait for a stage, and return what it has come to; raises what is to end the build."""
        while True:
            with self._done:
                if stage in self.outcomes:
                    return self.outcomes[stage]
                self._done.wait(0.1)
            self.check()

    def result(self, stage: int) -> Outcome:
        """Return what a stage has come to, all of them having ended; raises what has gone wrong."""
        if self._error is not None:
            raise self._error
        return self.outcomes[stage]


class Stopped(Exception):
    """Another stage has failed: this one is of no use any more."""
