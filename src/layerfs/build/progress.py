"""What a build says while it goes on: in the words of docker's classic builder, or as events for our client.

Stages are built side by side. The classic words are those of one stage after the other: what a later one has
said already waits until those before it have come to their end.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol


class Sink(Protocol):
    """Where words go to the client."""

    def put(self, fields: Mapping[str, Any], /) -> None:
        """Say *fields*, an object for JSON; raises where nobody listens any more."""

    def check(self) -> None:
        """Raise where nobody listens any more, or the build is to end."""


class Step(Protocol):
    """One step of a stage, as it is worked on. Every method may raise what `Sink` raises."""

    def working(self) -> None:
        """Say that it is not in the cache, and is being done."""

    def output(self, piece: bytes, *, error: bool = False) -> None:
        """Pass on what a command has written, to its standard output or its standard *error*."""

    def note(self, text: str) -> None:
        """Say a line about how it goes."""

    def pulling(self, fields: Mapping[str, Any]) -> None:
        """Pass on what a pull says, in dockerd's form."""

    def done(self, identifier: str, *, cached: bool | None = False) -> None:
        """Say that it is done; *identifier* is of what it made.

        *cached* is None for a step that takes no time, and is as cached as those around it.
        """

    def failed(self) -> None:
        """Say that it has failed."""


class Progress(Protocol):
    """What is said of a build. For all its threads."""

    def look(self, text: str) -> Step:
        """Begin to look something up, before it is known what there is to do."""

    def planned(self, steps: Mapping[int, int]) -> None:
        """Say what is to be done: how many *steps* there are in each stage, by its place, in their order."""

    def begin(self, stage: int, name: str, number: int, total: int, text: str) -> Step:
        """Begin the step *number*, from 1, of the *total* steps of a *stage*."""

    def end_stage(self, stage: int) -> None:
        """Say that all of a stage has been done."""

    def warn(self, text: str) -> None:
        """Say what is odd."""

    def check(self) -> None:
        """Raise where nobody listens any more, or the build is to end."""


_KEPT = 1 << 20
"""Characters that are kept of what is not said yet, for each stage: what came last."""


class _Kept:
    """What is to be said later: all of it, unless it is much, for then its beginning is left out."""

    def __init__(self) -> None:
        self._said: deque[Mapping[str, Any]] = deque()
        self._size = self._left_out = 0

    def add(self, fields: Mapping[str, Any]) -> None:
        self._said.append(fields)
        self._size += _length(fields)
        while self._size > _KEPT and len(self._said) > 1:
            gone = _length(self._said.popleft())
            self._size -= gone
            self._left_out += gone

    def all(self) -> list[Mapping[str, Any]]:
        first = [{"stream": f"[{self._left_out} characters are left out]\n"}] if self._left_out else []
        return [*first, *self._said]


def _length(fields: Mapping[str, Any]) -> int:
    return sum(len(str(value)) for value in fields.values())


class Classic:
    """The words of docker's classic builder."""

    def __init__(self, sink: Sink) -> None:
        """Say them to *sink*."""
        self._sink = sink
        self._lock = threading.Lock()
        self._order: list[int] = []
        """The stages whose words are still to come, the one first that speaks."""
        self._first: dict[int, int] = {}
        self._total = 0
        self._waiting: dict[int, _Kept] = {}
        self._ended: set[int] = set()
        self._undecided: dict[int, list[_ClassicStep]] = {}
        self._cached: dict[int, bool] = {}
        """Whether the last step of a stage was cached of which that is known."""

    def look(self, text: str) -> Step:
        """See `Progress`. The classic builder says nothing of it."""
        return _ClassicLook(self)

    def planned(self, steps: Mapping[int, int]) -> None:
        """See `Progress`."""
        self._order = list(steps)
        self._waiting = {stage: _Kept() for stage in steps}
        for stage, count in steps.items():
            self._first[stage] = self._total
            self._total += count

    def begin(self, stage: int, name: str, number: int, total: int, text: str) -> Step:
        """See `Progress`."""
        step = _ClassicStep(self, stage, f"Step {self._first[stage] + number}/{self._total} : {text}\n")
        self._undecided.setdefault(stage, []).append(step)
        return step

    def decide(self, stage: int, *, cached: bool) -> None:
        """Say the steps of which it was not clear whether they were *cached*."""
        steps = self._undecided.pop(stage, [])
        self._cached[stage] = cached
        for step in steps:
            step.say(cached=cached)

    def say(self, stage: int, text: str) -> None:
        """Say *text*, of a *stage*, when its turn has come."""
        with self._lock:
            if self._order and self._order[0] == stage:
                self._sink.put({"stream": text})
            else:
                self._waiting[stage].add({"stream": text})

    def end_stage(self, stage: int) -> None:
        """See `Progress`."""
        self.decide(stage, cached=self._cached.get(stage, False))
        with self._lock:
            self._ended.add(stage)
            while self._order and self._order[0] in self._ended:
                del self._order[0]
                if self._order:
                    self._flush(self._order[0])

    def pass_on(self, fields: Mapping[str, Any]) -> None:
        """Say *fields* at once: lines with an id of their own are told apart."""
        with self._lock:
            self._sink.put(fields)

    def fail_stage(self, stage: int) -> None:
        """Let what a stage has said that has failed come now: nothing is awaited any more."""
        self.decide(stage, cached=False)
        with self._lock:
            if self._order[:1] != [stage]:
                self._flush(stage)
                self._order = [stage]

    def _flush(self, stage: int) -> None:
        waiting, self._waiting[stage] = self._waiting[stage].all(), _Kept()
        if waiting:
            self._sink.put({"stream": "".join(it["stream"] for it in waiting)})

    def warn(self, text: str) -> None:
        """See `Progress`."""
        self._sink.put({"stream": f"[Warning] {text}\n"})

    def check(self) -> None:
        """See `Progress`."""
        self._sink.check()


class _ClassicStep:
    def __init__(self, progress: Classic, stage: int, head: str) -> None:
        self._progress = progress
        self._stage = stage
        self._head = head
        self._end = ""
        self._is_working = False
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = decoder("replace"), decoder("replace")

    def say(self, *, cached: bool) -> None:
        """Say what has been kept back."""
        using = " ---> Using cache\n" if cached and self._end else ""
        self._progress.say(self._stage, f"{self._head}{using}{self._end}")

    def working(self) -> None:
        self._is_working = True
        self._progress.decide(self._stage, cached=False)

    def output(self, piece: bytes, *, error: bool = False) -> None:
        if text := self._decoders[error].decode(piece):
            self._progress.say(self._stage, f"\x1b[91m{text}\x1b[0m" if error else text)

    def note(self, text: str) -> None:
        self._end += f"{text}\n"

    def pulling(self, fields: Mapping[str, Any]) -> None:
        self._progress.pass_on(fields)

    def done(self, identifier: str, *, cached: bool | None = False) -> None:
        self._end += f" ---> {identifier[:12]}\n"
        if cached is None:
            return
        if cached:
            self._progress.decide(self._stage, cached=True)
        else:
            self._progress.decide(self._stage, cached=False)
            if self._is_working:
                self._progress.say(self._stage, self._end)

    def failed(self) -> None:
        self._progress.fail_stage(self._stage)


class _ClassicLook:
    def __init__(self, progress: Classic) -> None:
        self._progress = progress

    def working(self) -> None:
        pass

    def output(self, piece: bytes, *, error: bool = False) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def pulling(self, fields: Mapping[str, Any]) -> None:
        self._progress.pass_on(fields)

    def done(self, identifier: str, *, cached: bool | None = False) -> None:
        pass

    def failed(self) -> None:
        pass


class Events:
    """Events for our own client, as they come: see `cli.buildprogress`."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._last = 0

    def look(self, text: str) -> Step:
        """See `Progress`."""
        return self.begin(-1, "internal", 0, 0, text)

    def planned(self, steps: Mapping[int, int]) -> None:
        """See `Progress`."""

    def begin(self, stage: int, name: str, number: int, total: int, text: str) -> Step:
        """See `Progress`."""
        with self._lock:
            self._last += 1
            vertex = self._last
            self._sink.put({"step": vertex, "begin": text, "stage": name, "number": number, "total": total})
        return _EventStep(self, vertex)

    def put(self, fields: Mapping[str, Any]) -> None:
        """Say *fields*."""
        with self._lock:
            self._sink.put(fields)

    def end_stage(self, stage: int) -> None:
        """See `Progress`."""

    def warn(self, text: str) -> None:
        """See `Progress`."""
        self.put({"warning": text})

    def check(self) -> None:
        """See `Progress`."""
        self._sink.check()


class _EventStep:
    def __init__(self, events: Events, vertex: int) -> None:
        self._events = events
        self._vertex = vertex
        self._begun = time.monotonic()
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = decoder("replace"), decoder("replace")

    def _put(self, **fields: Any) -> None:
        self._events.put({"step": self._vertex, **fields})

    def working(self) -> None:
        pass

    def output(self, piece: bytes, *, error: bool = False) -> None:
        if text := self._decoders[error].decode(piece):
            self._put(output=text, seconds=round(time.monotonic() - self._begun, 3))

    def note(self, text: str) -> None:
        self._put(note=text)

    def pulling(self, fields: Mapping[str, Any]) -> None:
        if "progressDetail" not in fields:
            self._put(note=": ".join(str(fields[name]) for name in ("id", "status") if fields.get(name)))
        self._events.check()

    def done(self, identifier: str, *, cached: bool | None = False) -> None:
        self._put(done=identifier, cached=bool(cached), seconds=round(time.monotonic() - self._begun, 3))

    def failed(self) -> None:
        self._put(failed=True, seconds=round(time.monotonic() - self._begun, 3))


class Quiet:
    """Says nothing until something fails: then what has been said so far, as docker does with `-q`."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._said = _Kept()

    def put(self, fields: Mapping[str, Any], /) -> None:
        """Keep *fields*."""
        self._said.add(fields)

    def check(self) -> None:
        """See `Sink`."""
        self._sink.check()

    def tell(self) -> None:
        """Say all, or the last of it if it is much."""
        for fields in self._said.all():
            self._sink.put(fields)
