"""How far an image is on its way, in the words of Docker's own progress."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from layerfs.oci.media import Descriptor


class Report(Protocol):
    """Where progress goes; both methods raise when nobody wants it any more, which ends the work."""

    def say(self, status: str, id: str = "", *, current: int = -1, total: int = 0) -> None:
        """Say something in general or, with *current* bytes of *total*, or 0, how one layer does."""

    def check(self) -> None:
        """Say nothing."""


def short(digest: str) -> str:
    """Return the name of a layer in progress: the first digits of its digest."""
    return digest.rpartition(":")[2][:12]


class Downloads:
    """Watches skopeo write the *blobs* of an image into a *layout*; a `skopeo.Watch`.

    skopeo writes each into a file `oci-put-blob*`, which gets the blob's own name when it is whole. Which one
    of several it is cannot be known before, so it is guessed from their order and sizes, and put right.
    """

    def __init__(self, layout: Path, blobs: Sequence[Descriptor], report: Report) -> None:
        self._layout = layout
        self._waiting = {blob.digest: blob.size for blob in blobs}
        self._parts: dict[str, str] = {}  # the digest that each unfinished file is taken to have
        self._said: dict[str, int] = {}
        self._report = report

    def __call__(self, pid: int, said: str) -> None:
        """Look, and say what is new."""
        self._report.check()
        sizes: dict[str, int] = {}
        with suppress(FileNotFoundError), os.scandir(self._layout) as entries:
            for entry in entries:
                if entry.name.startswith("oci-put-blob"):
                    with suppress(FileNotFoundError):
                        sizes[entry.name] = entry.stat().st_size
        self._parts = {name: digest for name, digest in self._parts.items() if name in sizes}
        for digest in list(self._waiting):
            if (self._layout / "blobs" / digest.replace(":", "/")).exists():
                del self._waiting[digest]
                self._parts = {name: known for name, known in self._parts.items() if known != digest}
                self._report.say("Download complete", short(digest), current=0)
        for name, size in sizes.items():
            digest = self._parts.get(name, "")
            if not digest or size > self._waiting[digest]:
                taken = set(self._parts.values()) - {digest}
                fitting = (one for one, most in self._waiting.items() if one not in taken and size <= most)
                digest = next(fitting, "")
                if not digest:
                    self._parts.pop(name, None)  # the configuration
                    continue
                self._parts[name] = digest
            if size and self._said.get(digest) != size:
                self._said[digest] = size
                self._report.say("Downloading", short(digest), current=size, total=self._waiting[digest])


class Uploads:
    """Watches skopeo send the *blobs* of a layout; a `skopeo.Watch`. They are called as *names* has them.

    How much of a blob is sent shows in the position at which skopeo reads it.
    """

    _DONE = re.compile(r"(Skipping blob|Upload of layer) ((?:sha256|sha512):[0-9a-f]+)( complete)?")

    def __init__(self, blobs: Sequence[Descriptor], names: Sequence[str], report: Report) -> None:
        self._waiting = {blob.digest: (name, blob.size) for blob, name in zip(blobs, names, strict=True)}
        self._said: dict[str, int] = {}
        self._report = report

    def __call__(self, pid: int, said: str) -> None:
        """Look, and say what is new."""
        self._report.check()
        for what, digest, _ in self._DONE.findall(said):
            if digest in self._waiting:
                name, _size = self._waiting.pop(digest)
                status = "Pushed" if what.startswith("Upload") else "Layer already exists"
                self._report.say(status, name, current=0)
        for digest, position in _positions(pid).items():
            if digest in self._waiting and position and self._said.get(digest) != position:
                self._said[digest] = position
                name, size = self._waiting[digest]
                self._report.say("Pushing", name, current=position, total=size)


def _positions(pid: int) -> dict[str, int]:
    """Return how far the process *pid* has read each blob that it has open."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError, ValueError):
                algorithm, digits = os.readlink(f"/proc/{pid}/fd/{fd}").split("/")[-2:]
                if algorithm in ("sha256", "sha512"):
                    info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
                    found[f"{algorithm}:{digits}"] = int(info.split(maxsplit=2)[1])
    return found
