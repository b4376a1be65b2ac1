"""Routes under `/layerfs/` that take a mount, or files in it, back, make other mounts of it, and thin out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest, Conflict, LayerfsError, NotFound, from_os_error
from layerfs.host import mounttable, record
from layerfs.host.rundir import check_name
from layerfs.mounting.mount import Checkpoint, Rollback, WentBack
from layerfs.mounting.request import MountRequest
from layerfs.unixhttp.message import Answer, Query, Response, json_response

_MOST = 1000
"""Mounts that one request may make."""
_MANY = 1_000_000


def rollback(call: Call) -> Response:
    """Take a mount back to a checkpoint; return the step, and the one that what was given up is now.

    With "Kill" the process of a container is killed before, with "Restart" it is started again as well.
    """
    flags = ("Discard", "Pause", "Kill", "Restart")
    body = _members(call, {"Ref": str, **dict.fromkeys(flags, bool)})
    if sum(bool(body.get(flag)) for flag in flags[1:]) > 1:
        raise BadRequest("a container's process can be paused, killed or restarted: choose one of them")
    if body.get("Kill") or body.get("Restart"):
        return _with_its_process(call, body)
    mount = call.mount(call.query.get("name"))
    if body.get("Pause") and not ((running := record.look(mount.mount_id)) and running.alive()):
        raise Conflict(f"cannot pause {mount.name}: no container runs in it")
    return _told(mount.rollback(_wanted(body)))


def _wanted(body: Mapping[str, Any]) -> Rollback:
    return Rollback(body.get("Ref") or "", bool(body.get("Discard")), body.get("Pause"))


def _told(went: WentBack) -> Response:
    return json_response({"Step": went.step, "Kept": went.kept})


def _with_its_process(call: Call, body: Mapping[str, Any]) -> Response:
    """Go back with a container whose process is killed, and started anew for "Restart"."""
    from layerfs.container import goback, tickets

    row = call.row(call.query.get("name"))
    if call.serves(row):
        raise Conflict(f"{row.name} cannot end its own files: ask the engine, or run 'layerfs rollback'")
    went = goback.go_back(call.root, row, _wanted(body))
    if body.get("Restart"):
        call.close()  # an SQLite connection must not live across the fork of a daemon
        goback.start_anew(
            call.root, row, call.place.launch, lambda record: tickets.call(row.id, record), went.step
        )
    return _told(went)


def fork(call: Call) -> Response:
    """Make a checkpoint of a mount, and live mounts of it, all or none; the mount itself goes on.

    With "Count" they are called NAME-1, NAME-2, ..., each on a directory of its name, made if need be.
    """
    body = _members(call, {"Name": str, "Mountpoint": str, "Count": int})
    name, mountpoint, count = body.get("Name") or "", body.get("Mountpoint") or "", body.get("Count")
    if isinstance(count, bool) or not (count is None or 1 <= count <= _MOST):
        raise BadRequest(f"Count must be a number from 1 to {_MOST}")
    if not mountpoint.startswith("/"):
        raise BadRequest("give the member Mountpoint: an absolute path")
    check_name(name)
    if call.place.live is not None:
        raise Conflict("a mount cannot fork itself: ask the engine, or run 'layerfs fork'")
    mount = call.mount(call.query.get("name"))
    places = [(name, mountpoint)]
    if count is not None:
        places = [(f"{name}-{number}", f"{mountpoint}/{name}-{number}") for number in range(1, count + 1)]
    made: list[str] = []
    directories: list[Path] = []
    try:
        _check_free(call, [each for each, _ in places])
        for _, place in places:
            if count is not None:
                _make_directory(place, mountpoint, directories)
            _check_mountpoint(place)
        row = call.store.mount(mount.mount_id)
        step = mount.checkpoint(
            Checkpoint(created_by=f"layerfs fork {mount.name}", comment=f"forked as {name}")
        )
        options = {key: value for key, value in row.options.items() if key != "container"}
        image = call.store.resolve(row.image) if row.image and _is_there(call, row.image) else None
        for each, place in places:
            call.store.create_mount(each, image=image, step=step, options=options, config=row.config)
            made.append(each)
            call.close()  # a process that is forked must not inherit SQLite's idea of the files it has open
            call.place.launch(MountRequest(place, call.root, name=each, recover=False))
    except BaseException:
        _take_back(call, made, directories)
        raise
    return json_response(
        {"Step": step, "Mounts": [{"Name": each, "Mountpoint": place} for each, place in places]}, 201
    )


def restore(call: Call) -> Answer:
    """Bring files and trees of a revision back into a mount; a checkpoint is made before."""
    from layerfs.api.past import find, snapshot
    from layerfs.container import view
    from layerfs.container.restoring import restore as bring_back
    from layerfs.store.revisions import Revision

    row = call.row(call.query.get("name") or (call.place.live.name if call.place.live else ""))
    if call.place.live is not None:
        from layerfs.api import apart

        query = Query([("name", row.id)])
        return apart.answer(Call(call.place, call.request._replace(query=query), call.names))
    body = _members(call, {"Ref": str, "Paths": list})
    reference, paths = body.get("Ref") or "", body.get("Paths") or []
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise BadRequest("give the member Paths: what is to be brought back")
    call.store.check_rollback(row)
    revision = call.store.revision(reference)
    if revision.mount is not None:
        revision = Revision(revision.step)  # its last checkpoint: what it is now is there already
    shown = ", ".join(paths).encode("utf-8", "replace").decode()
    with snapshot(call, revision) as then:
        entries = [find(then, os.fsencode(path), reference, follow=False) for path in paths]
        made = Checkpoint(
            created_by=f"layerfs restore {row.name}",
            comment=f"before {shown[:200]} came back from {reference}",
        )
        step = call.mount(row.id).checkpoint(made)
        with snapshot(call, Revision(step)) as now:
            row = call.store.mount(row.id)
            call.close()  # what is done meanwhile may take long, and uses stores of its own
            try:
                with view.opened(call.root, row, call.place.launch) as root:
                    count = bring_back(root, now, then, entries)
            except LayerfsError as error:
                told = f"{error}; 'layerfs rollback {row.name} {step[:12]}' undoes what was done"
                raise type(error)(told) from None
    return json_response({"Step": step, "Changed": count})


def squash(call: Call) -> Response:
    """Join a checkpoint with the one that stands on it, which keeps its id."""
    if call.place.live is not None:
        raise Conflict("what a mount in use reads cannot be squashed: unmount it, and use 'layerfs squash'")
    body = _members(call, {"Ref": str})
    done = call.store.squash(call.store.revision(body.get("Ref") or "").step)
    return json_response({"Step": done.kept, "Squashed": list(done.steps), "Freed": done.freed})


def keep(call: Call) -> Response:
    """Thin out the past of a mount by rules; at least one must be given."""
    from layerfs.store.thinning import Rules, span

    body = _members(call, {"Every": str, "Last": int, "Daily": int})
    for name in ("Last", "Daily"):
        if (number := body.get(name)) is not None and (isinstance(number, bool) or not 1 <= number <= _MANY):
            raise BadRequest(f"{name} must be a number from 1 to {_MANY}")
    every = body.get("Every")
    rules = Rules(span(every) if every else None, body.get("Last"), body.get("Daily"))
    if call.place.live is not None:
        raise Conflict(f"{call.place.live.name} is in use: unmount it first")
    done = call.store.keep(call.row(call.query.get("name")), rules)
    return json_response(
        {"Squashed": done.squashed, "Removed": done.removed, "InUse": done.in_use, "Freed": done.freed}
    )


def _is_there(call: Call, image: str) -> bool:
    try:
        call.store.resolve(image)
    except NotFound:
        return False
    return True


def _check_free(call: Call, names: Sequence[str]) -> None:
    taken = {mount.name for mount in call.store.mounts()}
    for name in names:
        check_name(name)
        if name in taken:
            raise Conflict(
                f"the name {name} is taken by another mount: remove it (layerfs rm {name}) or use another"
            )


def _make_directory(place: str, above: str, made: list[Path]) -> None:
    try:
        os.mkdir(place)
    except FileExistsError:
        return
    except FileNotFoundError:
        raise NotFound(f"directory {above} does not exist: create it first") from None
    except OSError as error:
        raise from_os_error(error, f"make {place}") from None
    made.append(Path(place))


def _check_mountpoint(place: str) -> None:
    if not os.path.isdir(place):
        raise NotFound(f"mountpoint {place} does not exist, or is no directory: create it first")
    if there := mounttable.mounted_at(os.path.realpath(place)):
        raise Conflict(f"{there.source} is mounted at {place}: unmount it first, or choose another")


def _take_back(call: Call, names: list[str], directories: list[Path]) -> None:
    """Unmount and remove the mounts that were made of a fork that failed, and the directories for them."""
    for name in reversed(names):
        with suppress(LayerfsError):
            call.mount(name).remove(force=True)
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


def _members(call: Call, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return the JSON members of the body; raises `BadRequest` for others than *kinds*, which may be null."""
    body: dict[str, Any] = call.request.json()
    for name, value in body.items():
        if name not in kinds:
            raise BadRequest(f"unknown member {name[:100]!r}: use {', '.join(sorted(kinds))}")
        if value is not None and not isinstance(value, kinds[name]):
            raise BadRequest(f"invalid member {name}: it has the wrong type")
    return body


ROUTES = (
    route("POST", "/layerfs/rollback", rollback, waits=True),
    route("POST", "/layerfs/fork", fork, waits=True),
    route("POST", "/layerfs/restore", restore, waits=True),
    route("POST", "/layerfs/squash", squash, waits=True, frees=True),
    route("POST", "/layerfs/keep", keep, waits=True, frees=True),
)
