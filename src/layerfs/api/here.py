"""The routes that the running mount of this process answers itself, on its trio loop.

The loop also serves the filesystem: what takes longer than an instant happens in a thread.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

import trio

from layerfs.api import containers, events, export, native
from layerfs.api.config import commit_request
from layerfs.api.live import LiveMount
from layerfs.api.routes import Call, Handler
from layerfs.container.ending import end
from layerfs.errors import Conflict
from layerfs.host.record import look
from layerfs.unixhttp.message import Response, Stream, json_response

POLL_SECONDS = 0.25
"""How often somebody who watches events looks for new ones."""

THREADS = trio.CapacityLimiter(8)
"""Requests that threads work on at a time: clients never use up the threads that the filesystem needs.

What the running mount answers itself must not wait for one of these: daemons that pass on requests to
each other would wait for each other.
"""

_AT_ONCE = 4096
"""Bytes of a request's body that are decoded in the loop: a thread would cost more than it saves."""

LiveHandler = Callable[[LiveMount, Call], Awaitable[Response]]


async def commit(live: LiveMount, call: Call) -> Response:
    """Commit the running mount."""
    if len(call.request.body) < _AT_ONCE:
        wanted = commit_request(call.request)
    else:
        wanted = await trio.to_thread.run_sync(commit_request, call.request)
    image = await live.commit(
        reference=wanted.reference,
        comment=wanted.comment,
        author=wanted.author,
        changes=wanted.changes,
        pause=wanted.pause,
    )
    return containers.committed(image, live.name, live.outside_upper)


async def changes(live: LiveMount, call: Call) -> Response:
    """Return what was written to the running mount since its last commit."""
    return await trio.to_thread.run_sync(containers.changed, await live.changes())


async def stop(live: LiveMount, call: Call) -> Response:
    """End the container that runs in the running mount, and unmount it."""
    if await trio.to_thread.run_sync(_end_container, live, call, False):
        with suppress(Conflict):  # who clears away after it may be quicker
            await live.unmount(force=True)
    else:
        await live.unmount(force=call.query.flag("force"))
    return containers.NO_CONTENT


def _end_container(live: LiveMount, call: Call, remove: bool) -> bool:
    """End the process of the container in the mount *live*, if there is one; return whether there was.

    Its supervisor clears away then, and removes it if it is to *remove* it: this process cannot wait for
    its own end.
    """
    if look(live.mount_id) is None:
        return False
    with call.of_this_thread() as own:
        mount = own.store.mount(live.mount_id)
        if remove:
            own.store.update_container(mount.id, "kill", AutoRemove=True)
        end(mount, *(() if remove else containers.how_to_end(own, mount)))
    return True


async def unmount(live: LiveMount, call: Call) -> Response:
    """Unmount the running mount."""
    await trio.to_thread.run_sync(_check_unused, live, call)
    await live.unmount(force=call.query.flag("force"))
    return containers.NO_CONTENT


def _check_unused(live: LiveMount, call: Call) -> None:
    with call.of_this_thread() as own:
        containers.check_unused(own.store.mount(live.mount_id))


async def remove(live: LiveMount, call: Call) -> Response:
    """Unmount the running mount and remove it, if that is forced."""
    if not call.query.flag("force"):
        why = f"it is mounted on {live.mountpoint}; unmount it first, or force its removal"
        raise Conflict(f"cannot remove {live.name}: {why}")
    if await trio.to_thread.run_sync(_end_container, live, call, True):
        with suppress(Conflict):
            await live.remove(force=True)
    else:
        await live.remove(force=True)
    return containers.NO_CONTENT


async def flush(live: LiveMount, call: Call) -> Response:
    """Bring what was written to the running mount until now into its upper."""
    await live.flush()
    return containers.NO_CONTENT


async def status(live: LiveMount, call: Call) -> Response:
    """Return figures about this daemon."""
    return json_response(live.status())


HANDLERS: dict[Handler, LiveHandler] = {
    containers.commit: commit,
    containers.changes: changes,
    containers.stop: stop,
    containers.remove: remove,
    export.flush: flush,
    native.status: status,
    native.unmount: unmount,
}


def is_meant(live: LiveMount, call: Call) -> bool:
    """Return whether *call* names the mount *live*, in a way that needs no look at the store.

    A call that names it by the start of its id finds it through the store, and comes back.
    """
    given = call.names.get("name") or call.query.get("container") or call.query.get("name")
    if not given:
        return call.request.path.startswith("/layerfs/")
    return given.removeprefix("/") in (live.name, live.mount_id)


def watch_events(call: Call) -> Stream:
    """Return the events that *call* asks for, those to come among them."""
    return Stream(200, _event_lines(call, events.parse_watch(call)), events.HEADERS)


async def _event_lines(call: Call, watch: events.Watch) -> AsyncGenerator[bytes, None]:
    last: int | None = None
    while True:
        over = watch.over  # before looking, so that nothing falls between
        last, lines = await trio.to_thread.run_sync(
            _look, call, watch, last, abandon_on_cancel=True, limiter=THREADS
        )
        if lines:
            yield lines
        if over:
            return
        await trio.sleep(POLL_SECONDS)


def _look(call: Call, watch: events.Watch, last: int | None) -> tuple[int, bytes]:
    """Return what `events.recorded` does, with a store of this thread."""
    with call.of_this_thread() as own:
        return events.recorded(own, watch, last)
