"""What the entries of the build cache take, and which of them go when it is pruned.

An entry stands for the layers from its step down to the next entry's, or, where there is none, to the image
that the build began with. It stays for as long as another entry is built on it: that keeps its layers anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from layerfs.store import events, layers, stacks
from layerfs.store.buildcache import BuildCache, CacheEntry
from layerfs.store.database import Database
from layerfs.store.model import to_nanoseconds

_AT_A_TIME = 500
"""Entries that go in one transaction, so that a commit never waits long for its turn."""


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """An entry of the build cache, and what it takes."""

    entry: CacheEntry
    parents: tuple[str, ...]
    """The keys of the entries that it is built on directly."""
    layers: tuple[str, ...]
    size: int
    """Bytes of its layers."""
    in_use: bool
    """Whether a build that goes on needs it."""
    shared: bool
    """Whether images and mounts have all its layers too: then pruning it frees nothing."""
    used: int
    """When it, or an entry that is built on it, was used last: nanoseconds since the epoch."""


Wanted = Callable[[CacheUsage], bool]
Removing = Callable[[], bool]
"""Removes something, and returns whether it is gone."""


class _Graph:
    """The steps of a store and who refers to them, at one moment."""

    def __init__(self, db: Database) -> None:
        with db.snapshot():
            self.entries = BuildCache(db, None).entries()
            held = db.execute("SELECT DISTINCT step FROM build_steps").fetchall()
            rows = db.execute("SELECT id, parent, layer FROM steps") if self.entries or held else ()
            self._steps = {step: (parent, layer) for step, parent, layer in rows}
            owners = db.execute("SELECT step FROM images UNION SELECT step FROM mounts").fetchall()
        self._tops = {step for (step,) in owners}
        self.owned = self._layers(self._with_below(self._tops))
        self.held = self._with_below(step for (step,) in held)
        self._keys: dict[str, list[str]] = {}
        for entry in self.entries:
            self._keys.setdefault(entry.step, []).append(entry.key)

    def _with_below(self, steps: Iterable[str]) -> set[str]:
        found: set[str] = set()
        for step in steps:
            below: str | None = step
            while below is not None and below in self._steps and below not in found:
                found.add(below)
                below = self._steps[below][0]
        return found

    def kept_layers(self) -> set[str]:
        """Return the layers that stay for the sake of the cache and of builds that go on."""
        return self._layers(self.held | self._with_below(entry.step for entry in self.entries))

    def _layers(self, steps: Iterable[str]) -> set[str]:
        return {layer for step in steps if (layer := self._steps[step][1]) is not None}

    def own(self, step: str) -> tuple[list[str], list[str], str | None]:
        """Return the layers that an entry of *step* stands for, the keys of those below, and their step.

        The layers of the image that a build began with, on which no entry stands, are not the cache's.
        """
        found: list[str] = []
        below: str | None = step
        while below is not None:
            parent, layer = self._steps[below]
            if layer is not None:
                found.append(layer)
            below = parent
            if below in self._keys:
                return found, self._keys[below], below
            if below in self._tops:
                break
        return found, [], None


def kept_layers(db: Database) -> set[str]:
    """Return the layers that stay for the sake of the cache and of builds that go on."""
    return _Graph(db).kept_layers()


def usage(db: Database, size_of: Callable[[str], int]) -> list[CacheUsage]:
    """Return all entries, those used last first; *size_of* says how many bytes a layer has."""
    graph = _Graph(db)
    own = {entry.step: graph.own(entry.step) for entry in graph.entries}
    used = {}
    for entry in graph.entries:  # those that were used last come first
        step: str | None = entry.step
        while step is not None and step not in used:
            used[step] = to_nanoseconds(entry.used)
            step = own[step][2]
    return [
        CacheUsage(
            entry,
            tuple(own[entry.step][1]),
            tuple(own[entry.step][0]),
            sum(map(size_of, own[entry.step][0])),
            entry.step in graph.held,
            bool(own[entry.step][0]) and graph.owned.issuperset(own[entry.step][0]),
            used[entry.step],
        )
        for entry in graph.entries
    ]


def prune(
    db: Database,
    *,
    everything: bool,
    keep: int,
    wanted: Wanted,
    beside: Sequence[tuple[CacheUsage, Removing]],
) -> tuple[list[str], int]:
    """Remove the *wanted* entries that nothing needs; see `BuildCache.prune`."""
    sizes = layers.known_sizes(db)

    def size_of(layer_id: str) -> int:
        known = sizes.get(layer_id, 0)
        # What nobody has measured yet is only measured where it decides.
        return known if known is not None else layers.size(db, layer_id) if keep else 0

    found = [*usage(db, size_of), *(used for used, _ in beside)]
    chosen = _choose(found, everything=everything, keep=keep, wanted=wanted)
    removed: list[str] = []
    freed = 0
    own = [one.entry for one in chosen if one.entry.step]
    for start in range(0, len(own), _AT_A_TIME):
        doomed: list[str] = []
        with db.transaction():
            removed += [entry.key for entry in own[start : start + _AT_A_TIME] if _remove(db, entry, doomed)]
        freed += sum(layers.size_of_rowless(db, layer_id, sizes) for layer_id in doomed)
        layers.discard(db, *doomed)
    others = {used.entry.key: remove for used, remove in beside}
    for one in chosen:
        if not one.entry.step and others[one.entry.key]():
            removed.append(one.entry.key)
            freed += one.size
    with db.transaction():
        events.record(db, "builder", "prune", "", {"reclaimed": str(freed)})
    return removed, freed


def _choose(found: list[CacheUsage], *, everything: bool, keep: int, wanted: Wanted) -> list[CacheUsage]:
    """Return the entries to remove: first those used longest ago, each after those that are built on it."""
    above = Counter(key for one in found for key in one.parents)
    same = Counter(_what(one) for one in found)
    depth = _depths(found)
    total = sum({_what(one): one.size for one in found if not one.shared}.values())
    chosen = []
    for one in sorted(found, key=lambda one: (one.used, -depth[one.entry.key])):
        if keep and total <= keep:
            break
        if one.in_use or above[one.entry.key] or (one.shared and not everything) or not wanted(one):
            continue
        chosen.append(one)
        above.subtract(one.parents)
        same[_what(one)] -= 1
        if not one.shared and not same[_what(one)]:
            total -= one.size
    return chosen


def _what(one: CacheUsage) -> str:
    """Return what takes the bytes of an entry; several keys may lead to one step."""
    return one.entry.step or one.entry.key


def _depths(found: list[CacheUsage]) -> dict[str, int]:
    """Return how many entries lie below each."""
    parents = {one.entry.key: one.parents for one in found}
    depths: dict[str, int] = {}
    for key in parents:
        chain = []
        at: str | None = key
        while at is not None and at not in depths:
            chain.append(at)
            at = parents[at][0] if parents[at] else None
        start = depths[at] + 1 if at is not None else 0
        depths |= {name: number for number, name in enumerate(reversed(chain), start)}
    return depths


def _remove(db: Database, entry: CacheEntry, doomed: list[str]) -> bool:
    """Delete an entry that nobody has used since it was looked at; part of a transaction."""
    row = (entry.key, entry.step, to_nanoseconds(entry.used))
    found = db.scalar("DELETE FROM build_cache WHERE key = ? AND step = ? AND used = ? RETURNING key", row)
    if found is None:
        return False
    doomed += stacks.release_if_there(db, entry.step)
    return True
