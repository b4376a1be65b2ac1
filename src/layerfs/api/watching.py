"""Routes about the processes of a container that runs: what they are, use, may use, and how they pause."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from layerfs.api.containers import NO_CONTENT
from layerfs.api.routes import Call, route
from layerfs.api.running import the_container
from layerfs.container import pausing
from layerfs.container import top as processes
from layerfs.container import update as limits
from layerfs.container.stats import sample
from layerfs.errors import NotFound
from layerfs.unixhttp.message import Answer, Response, Stream, json_response

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_PERIOD = 1.0
"""Seconds between two samples, as dockerd has it."""
_PAUSE = 0.25


def top(call: Call) -> Response:
    """List the processes of a container; `ps_args` are options of ps(1)."""
    return json_response(processes.top(the_container(call), call.query.get("ps_args")))


def stats(call: Call) -> Answer:
    """Measure what a container uses: each second until the client leaves, or once."""
    row = the_container(call)
    if call.query.get("stream", "true").lower() in ("0", "false"):
        first = None if call.query.flag("one-shot") else sample(row)
        if first is not None:
            time.sleep(_PERIOD)
        return json_response(sample(row, first))
    return Stream(200, _samples(call, row), (("Content-Type", "application/json"),))


def _samples(call: Call, row: Mount) -> Generator[bytes, None, None]:
    previous: dict[str, Any] | None = None
    while True:
        previous = sample(row, previous)
        yield json.dumps(previous).encode() + b"\n"
        until = time.monotonic() + _PERIOD
        while time.monotonic() < until:
            time.sleep(_PAUSE)
            yield b""
        try:
            call.store.mount(row.id)
        except NotFound:
            return


def pause(call: Call) -> Response:
    """Have the processes of a container stand still."""
    pausing.pause(call.root, the_container(call))
    return NO_CONTENT


def unpause(call: Call) -> Response:
    """Let the processes of a container go on."""
    pausing.unpause(call.root, the_container(call))
    return NO_CONTENT


def update(call: Call) -> Response:
    """Change the limits and the restart policy of a container, which may run."""
    warnings = limits.update(call.root, the_container(call), call.request.json())
    return json_response({"Warnings": warnings or None})


ROUTES = (
    route("GET", "/containers/{name}/top", top),
    route("GET", "/containers/{name}/stats", stats),
    route("POST", "/containers/{name}/pause", pause),
    route("POST", "/containers/{name}/unpause", unpause),
    route("POST", "/containers/{name}/update", update),
)
