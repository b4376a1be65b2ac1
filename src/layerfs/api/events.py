"""The route of `docker events`: what happened to images and mounts, and what happens."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from layerfs.api.filters import Filters, parse_filters
from layerfs.api.routes import Call, route
from layerfs.api.shapes import digest
from layerfs.api.times import parse_time
from layerfs.errors import BadRequest
from layerfs.host import inotify
from layerfs.store.model import Event
from layerfs.unixhttp.message import Stream

HEADERS = (("Content-Type", "application/json"),)
LOOK_SECONDS = 1.0
"""How long nobody looks for new events while nothing is written to the store."""
_FILTERS = ("container", "event", "image", "network", "type", "volume")


@dataclass(frozen=True, slots=True)
class Watch:
    """Which events a client asked for; times in nanoseconds since the epoch."""

    since: int | None
    until: int | None
    filters: Filters
    legacy: bool
    """Whether the members that version 1.22 replaced are wanted too."""

    @property
    def over(self) -> bool:
        """Whether nothing can come any more."""
        return self.until is not None and time.time_ns() >= self.until

    def wants(self, event: Event) -> bool:
        """Return whether the client asked for *event*."""
        if self.until is not None and event.time > self.until:
            return False
        for name, wanted in self.filters.items():
            if name == "type":
                found = {event.type}
            elif name == "event":
                found = {event.action, event.action.partition(":")[0]}
            else:
                found = _names(event) if event.type == name else set()
                if name == "image" and event.type == "container":
                    found = {event.attributes.get("image", "")}
            if found.isdisjoint(wanted):
                return False
        return True


def parse_watch(call: Call) -> Watch:
    """Return what *call* asks for; raise `BadRequest` when that makes no sense."""
    since = parse_time(call.query.get("since"), "since")
    until = parse_time(call.query.get("until"), "until")
    if since is not None and until is not None and until < since:
        raise BadRequest("the time 'since' cannot be after the time 'until'")
    filters = parse_filters(call.query.get("filters"), _FILTERS)
    return Watch(since, until, filters, legacy=call.request.version < (1, 52))


def recorded(call: Call, watch: Watch, last: int | None) -> tuple[int, bytes]:
    """Return the id of the newest event, and the lines of those after *last* that are wanted.

    Where *last* is None the store's past counts from `watch.since` on, or not at all without it.
    """
    events = call.store.events(last or 0)
    newest = events[-1].id if events else last or 0
    if last is None:
        events = [event for event in events if watch.since is not None and event.time >= watch.since]
    return newest, b"".join(_lines(events, watch))


def _lines(events: list[Event], watch: Watch) -> Iterator[bytes]:
    for event in events:
        if watch.wants(event):
            yield json.dumps(message(event, legacy=watch.legacy)).encode() + b"\n"


def message(event: Event, *, legacy: bool) -> dict[str, Any]:
    """Return *event* as Docker's clients expect it."""
    actor = digest(event.actor) if event.type == "image" else event.actor
    result: dict[str, Any] = {}
    if legacy:
        result = {"status": event.action, "id": actor}
        if origin := event.attributes.get("image"):
            result["from"] = origin
    return result | {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": actor, "Attributes": event.attributes},
        "scope": "local",
        "time": event.time // 1_000_000_000,
        "timeNano": event.time,
    }


def _names(event: Event) -> set[str]:
    """Return the names by which a filter may mean the thing that *event* is about."""
    name = event.attributes.get("name", "")
    names = {digest(event.actor), event.actor, event.actor[:12], name}
    if event.type == "image":
        names.add(name.rpartition(":")[0])
    return names - {""}


def watch(call: Call) -> Stream:
    """Return the events that the call asks for: past ones, and those to come until the client leaves."""
    return Stream(200, _watched(call, parse_watch(call)), HEADERS)


def _watched(call: Call, watch: Watch) -> Generator[bytes, None, None]:
    last: int | None = None
    with inotify.Watch(call.root) as written:  # before looking, so that nothing falls between
        while True:
            over = watch.over
            last, lines = recorded(call, watch, last)
            yield lines
            if over:
                return
            left = LOOK_SECONDS if watch.until is None else (watch.until - time.time_ns()) / 1e9
            written.wait(max(0.0, min(LOOK_SECONDS, left)))


ROUTES = (route("GET", "/events", watch),)
