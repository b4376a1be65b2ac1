"""The listings of directories that a union remembers, and what keeps them true when names come and go.

A cookie is a hash of the name, so a name has the same place in every listing, whatever comes and goes around
it: a reader that continues from a cookie misses no name and meets none twice.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict

import xxhash

from layerfs.union import merge
from layerfs.union.node import Directory

_REMEMBERED = 64
"""How many directory listings are remembered."""


class Listings:
    """The listings that are remembered, of the directories of one union."""

    def __init__(self) -> None:
        """Nothing is remembered yet."""
        self.missed: tuple[Directory, bytes] | None = None
        """The name that was last looked for in vain: who makes or renames something to it looks first."""
        self._remembered: OrderedDict[Directory, None] = OrderedDict()

    def of(self, directory: Directory) -> list[tuple[int, bytes]]:
        """Return the names in *directory*, each with its cookie, in the order of the cookies.

        Raises `OSError` where a layer cannot be read.
        """
        if directory.listing is None:
            names = [] if directory.removed else merge.names(directory.dirs)
            directory.listing = _with_cookies(names)
            self._remembered[directory] = None
            if len(self._remembered) > _REMEMBERED:
                oldest, _ = self._remembered.popitem(last=False)
                oldest.listing = None
        return directory.listing

    def drop_all(self) -> None:
        """Forget what is remembered of the names in all directories."""
        self.missed = None
        for directory in self._remembered:
            directory.listing = None
        self._remembered.clear()

    def drop(self, directory: Directory) -> None:
        """Forget what is remembered of the names in *directory*."""
        if directory.listing is not None:
            directory.listing = None
            self._remembered.pop(directory, None)

    def added(self, directory: Directory, name: bytes) -> None:
        """Note that *directory* now has *name*; it may have had it before."""
        self.missed = None
        if directory.listing is not None:
            pair = (_cookie(name), name)
            position = bisect.bisect_left(directory.listing, pair)
            there = directory.listing[position : position + 1]
            if there != [pair]:
                if there and there[0][0] == pair[0]:
                    self.drop(directory)  # two names with one hash: make the listing anew
                else:
                    directory.listing.insert(position, pair)

    def removed(self, directory: Directory, name: bytes) -> None:
        """Note that *directory* has no *name* any more."""
        if directory.listing is not None:
            pair = (_cookie(name), name)
            position = bisect.bisect_left(directory.listing, pair)
            if directory.listing[position : position + 1] == [pair]:
                del directory.listing[position]
            else:
                self.drop(directory)


def _cookie(name: bytes) -> int:
    """Return the cookie of *name*: positive, below 2**63, and not one of those for "." and ".."."""
    return max(xxhash.xxh3_64_intdigest(name) >> 1, 3)


def _with_cookies(names: list[bytes]) -> list[tuple[int, bytes]]:
    """Return (cookie, name) pairs in the order of the cookies, which are all different."""
    pairs = sorted((_cookie(name), name) for name in names)
    last = 0
    for position, (cookie, name) in enumerate(pairs):
        if cookie <= last:  # two names with one hash: the second moves up by one
            cookie = last + 1
            pairs[position] = (cookie, name)
        last = cookie
    return pairs
