"""A container's way from an image to its end: made, started, stopped, cleared away after, removed.

Whoever finds that a container has ended may clear away after it: the command that waits for it, the one
that its supervisor runs, or the next one that is asked about it. They take turns (`record.Lock`), and the
first one does it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container import files, networks, ociruntime, supervisor, volumes
from layerfs.container.health import STARTING, check_of
from layerfs.container.ociruntime import ContainerError, Runtime
from layerfs.container.restart import wants_restart
from layerfs.container.stored import host_config, points_of
from layerfs.errors import BadRequest, Conflict, Forbidden, LayerfsError, NotFound, from_os_error
from layerfs.host import cgroups
from layerfs.host.mounttable import mounted_at
from layerfs.host.record import Lock, Record, Watch, born, directory, look, settled
from layerfs.host.rundir import forget, running_pid
from layerfs.host.signals import interrupted_by
from layerfs.mounting.find import mount_of
from layerfs.store import Store
from layerfs.store.reserve import with_reserve

if TYPE_CHECKING:
    from layerfs.mounting.request import MountRequest
    from layerfs.store.model import Mount

    Launch = Callable[[MountRequest], str]

UNKNOWN = 255
"""The exit code of a container of which nobody knows how it ended, as Docker's after a crash."""
NOT_STARTED = 125
"""The exit code of a container that could not be started."""
_END_PATIENCE = 10.0
"""Seconds that the daemon of a container's files may take to end."""

_chosen: list[Runtime] = []
"""The runtime that has worked in this process."""


def check_possible() -> None:
    """Raise the `LayerfsError` that says why no container can be run here, if so."""
    if os.geteuid() != 0:
        raise Forbidden("running containers needs root: use sudo, or 'layerfs mount' and unshare(1)")
    ociruntime.installed()
    supervisor.find_conmon()


def start(
    root: Path,
    mount: Mount,
    launch: Launch,
    before: Callable[[Record], None] = lambda record: None,
    *,
    again: bool = False,
) -> bool:
    """Mount the tree of the container *mount* by *launch* and start its process; return False if it runs.

    *again*: its restart policy wants it, not a person; that is counted, and does not start one that a person
    has stopped meanwhile, or that has been started as often as it may be. *before* is called when everything
    is ready but the process has not begun: attach then, and no output is missed. Raises `LayerfsError`; then
    nothing of it runs, and the reason is noted in the store.
    """
    check_possible()
    with Lock(mount.id) as lock:
        try:
            with Store(root) as store:
                mount = store.mount(mount.id)
        except NotFound:  # it has been removed before we had the lock, which is all that there is of it
            if lock.is_empty():
                lock.discard()
            raise
        record = lock.read()
        if record and record.alive():
            return False
        if record:
            _finish(root, mount, lock, record)
            if host_config(mount.container)["AutoRemove"]:
                raise NotFound(f"no such mount: {mount.name}")
        if again and not (mount.container.get("Restarting") and wants_restart(mount, NOT_STARTED)):
            _take_down(root, mount, lock)
            lock.discard()
            return False
        _note_start(root, mount, again)
        with _interruptible():
            try:
                _take_down(root, mount, lock)  # what is left of a start that was killed, if anything
                lock.clear()
                _start(root, mount, lock, launch, before)
            except BaseException as error:
                if isinstance(error, OSError):
                    error = from_os_error(error, f"start {mount.name}")
                _undo(root, mount, lock, error)
                raise error from None
    return True


def _note_start(root: Path, mount: Mount, again: bool) -> None:
    """Note in the store that *mount* is about to be started.

    Before it runs: who stops it in the middle of that wants it to stay so. What its policy starts nobody has
    stopped.
    """
    count = mount.container.get("RestartCount", 0)
    changed = {"RestartCount": count + 1} if again else {"RestartCount": 0, "Stopped": False}
    if any((mount.container.get(name) or 0) != value for name, value in changed.items()):
        with Store(root) as store:
            store.update_container(mount.id, None, **changed)


def _interruptible() -> AbstractContextManager[None]:
    """Let signals that would end this process raise `KeyboardInterrupt`: there is something to undo.

    A server has its own way to end.
    """
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return interrupted_by((signal.SIGHUP, signal.SIGTERM))


def _start(root: Path, mount: Mount, lock: Lock, launch: Launch, before: Callable[[Record], None]) -> None:
    from layerfs.mounting.request import MountRequest

    tree = lock.path / "rootfs"
    with suppress(FileExistsError):
        os.mkdir(tree)
    if running_pid(mount.name) is not None:
        raise Conflict(f"{mount.name} is mounted on {mount.mountpoint}: unmount it first")
    launch(MountRequest(mountpoint=str(tree), root=root, name=mount.name))
    network = networks.set_up(root, mount)
    try:
        _write_spec(root, mount, lock.path, tree, network)
        oci_runtime, pid = _create(root, mount, lock.path, network)
    finally:
        network.close()
    record = Record(pid, born(pid) or 0, oci_runtime.path)
    before(record)
    started = datetime.now(UTC)
    oci_runtime.start(mount.id)
    lock.write(record)  # not before: killed up to here, we leave nothing that looks as if it ran
    _chosen[:] = [oci_runtime]
    with Store(root) as store:
        store.update_container(
            mount.id,
            "start",
            StartedAt=started.isoformat(),
            FinishedAt=None,
            ExitCode=0,
            Error="",
            Restarting=False,
            OOMKilled=False,
            Health=dict(STARTING) if check_of(mount.config) else None,  # there from the first look on
        )


def _write_spec(root: Path, mount: Mount, bundle: Path, tree: Path, network: networks.Prepared) -> None:
    """Write what the runtime has to know. Raises `LayerfsError` and `OSError`."""
    from layerfs.container import hostfiles, namespaces, shm, spec, users
    from layerfs.store import imageconfig

    imageconfig.check(mount.config, f"the configuration of {mount.name}")
    host = host_config(mount.container)
    own = files.directory(root, mount.id)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    hostname = spec.hostname_of(mount.id, mount.container)
    if other := namespaces.container_of(host["NetworkMode"]):
        named = hostfiles.points(files.directory(root, _running(root, mount, other, "network")[0]))
    else:
        named = hostfiles.write(own, hostname, mount.container.get("Domainname", ""), host, network.files)
    points = volumes.set_up(root, mount, tree, points_of(mount))
    files.make_sources(points)
    taken = {point["Destination"] for point in points}
    joins = namespaces.joined(host, lambda name: _running(root, mount, name, "process")[1].pid)
    if network.namespace is not None:
        joins["network"] = network.namespace
    memory = shm.set_up(bundle, host, lambda name: directory(_running(root, mount, name, "IPC")[0]))
    named += [point for point in memory if point["Destination"] not in host.get("Tmpfs", {})]
    user = users.find_user(tree, mount.config.get("User") or "")
    built = spec.build(
        mount_id=mount.id,
        root=tree,
        config=mount.config,
        settings=mount.container,
        user=users.with_groups(tree, user, host["GroupAdd"] or ()),
        points=[*(point for point in named if point["Destination"] not in taken), *points],
        joins=joins,
        variables=network.variables,
    )
    (bundle / "config.json").write_text(json.dumps(built), errors="surrogateescape")


def _running(root: Path, mount: Mount, name: str, what: str) -> tuple[str, Record]:
    """Return the id and the record of one that the container *mount* joins; raises `LayerfsError`."""
    with Store(root) as store:
        try:
            other = store.mount(name)
        except NotFound:
            raise NotFound(f"joining {what} namespace of container: No such container: {name}") from None
    if other.id == mount.id:
        raise BadRequest(f"cannot join own {what} namespace")
    record = look(other.id)
    if record is None or not record.alive():
        raise Conflict(
            f"cannot join {what} namespace of a non running container: container {other.name} is not running"
        )
    return other.id, record


def _create(root: Path, mount: Mount, bundle: Path, network: networks.Prepared) -> tuple[Runtime, int]:
    """Create the container by the first runtime that can; return it and the pid of the first process."""
    from layerfs.container import hostconfig

    settings = mount.container
    wanted = supervisor.Supervised(
        mount_id=mount.id,
        bundle=bundle,
        log=files.log_path(root, mount.id),
        log_limit=hostconfig.log_limit(host_config(settings)),
        root=root,
        terminal=settings["Tty"],
        stdin=settings["OpenStdin"],
        stdin_stays_open=settings["Tty"] or not settings["StdinOnce"],  # a terminal never ends, as dockerd's
        holds=tuple(one.fileno() for one in network.sockets),
    )
    wanted.log.touch(mode=0o600)
    conmon = supervisor.find_conmon()
    first: ContainerError | None = None
    asked = host_config(settings)["Runtime"]
    for oci_runtime in _chosen or ociruntime.installed() if asked != "crun" else ociruntime.installed(asked):
        try:
            return oci_runtime, supervisor.create(conmon, oci_runtime, wanted)
        except ContainerError as error:
            oci_runtime.delete(mount.id)
            first = first or error
            if error.is_about_the_command:
                break
    assert first is not None
    raise first


def _undo(root: Path, mount: Mount, lock: Lock, error: BaseException) -> None:
    """Take away what was made of a container that could not be started; note why in the store."""
    status = error.exit_code if isinstance(error, ContainerError) else NOT_STARTED
    record = lock.read()
    with suppress(LayerfsError, OSError):
        _take_down(root, mount, lock)
        with Store(root) as store:
            if host_config(mount.container)["AutoRemove"]:
                store.remove_mount(mount.id, volumes=True)
                forget(mount.name)
            else:
                store.update_container(mount.id, "die", ExitCode=status, Error=str(error))
        if record:
            lock.write(Record(record.pid, record.born, record.runtime, status))
        lock.discard()


def _take_down(root: Path, mount: Mount | None, lock: Lock) -> None:
    """Take away a container that was made but perhaps not started, whoever made it. Raises `LayerfsError`."""
    from layerfs.container import shm

    record = lock.read()
    if not lock.is_empty():
        for oci_runtime in [Runtime(record.runtime)] if record else ociruntime.installed():
            oci_runtime.delete(lock.path.name)
    shm.take_down(lock.path)
    networks.take_down(root, lock.path.name)
    volumes.take_down(root, lock.path.name)
    if mount is not None and mounted_at(str(lock.path / "rootfs")):
        _unmount(root, mount)


def finish(root: Path, mount_id: str) -> int | None:
    """Clear away after a container whose process has ended; return its exit code.

    None when there was nothing to do: somebody else has done it, or it runs. Raises `LayerfsError`.
    """
    if not directory(mount_id).exists():
        return None
    return with_reserve(root, lambda: _finish_locked(root, mount_id))


def _finish_locked(root: Path, mount_id: str) -> int | None:
    with Lock(mount_id) as lock:
        record = lock.read()
        if record is not None and record.alive():
            return None
        with Store(root) as store:
            try:
                mount = store.mount(mount_id)
            except NotFound:  # it has been removed meanwhile
                mount = None
        code = None
        if record is None:  # who was starting it was killed
            _take_down(root, mount, lock)
        else:
            code = _finish(root, mount, lock, record)
        lock.discard()
        return code


def restarting(root: Path, mount_id: str) -> Mount | None:
    """Return the container if it is to be started again, unless somebody stops it before; else None."""
    with Store(root) as store, suppress(NotFound):
        row = store.mount(mount_id)
        return row if row.container.get("Restarting") else None
    return None


def wait(root: Path, mount: Mount, watch: Watch) -> int | None:
    """Wait until the container *mount* has ended and somebody, perhaps we, has cleared away after it.

    Returns its exit code, None for one whose start has failed. Raises `LayerfsError`.
    """
    while True:
        record = watch.read()
        if record is not None:
            record.wait()
        code = finish(root, mount.id)  # waits for one that is being started, too
        if code is not None:
            return code
        record = watch.read()
        if record is None or not record.alive():
            return record.exit_code if record else None


def _finish(root: Path, mount: Mount | None, lock: Lock, record: Record) -> int:
    from layerfs.container import shm
    from layerfs.container.spec import cgroups_path

    mount_id = lock.path.name
    noted = supervisor.exit_code(lock.path, mount_id)
    code = UNKNOWN if noted is None else noted
    finished = datetime.now(UTC)
    starved = mount is not None and cgroups.has_run_out_of_memory(
        cgroups_path(mount_id, host_config(mount.container))
    )
    Runtime(record.runtime).delete(mount_id)
    shm.take_down(lock.path)
    networks.take_down(root, mount_id)
    volumes.take_down(root, mount_id)
    if mount is not None:
        _unmount(root, mount, discard=host_config(mount.container)["AutoRemove"])
        with Store(root) as store, suppress(NotFound):
            row = store.mount(mount_id)
            store.update_container(
                mount_id,
                "die",
                FinishedAt=finished.isoformat(),
                ExitCode=code,
                Error="" if noted is not None else "its supervisor ended before it did",
                Restarting=wants_restart(row, code),
                OOMKilled=starved,
            )
            own = host_config(row.container)["AutoRemove"]
            if own or row.container.get("Removing"):
                store.remove_mount(mount_id, volumes=own or row.container["Removing"]["Volumes"])
                forget(mount.name)
    lock.write(Record(record.pid, record.born, record.runtime, code))
    return code


def _unmount(root: Path, mount: Mount, *, discard: bool = False) -> None:
    """Unmount the tree of a container, whoever may already be doing that. Raises `LayerfsError`."""
    with suppress(Conflict, NotFound), Store(root) as store:
        mount_of(store, store.mount(mount.id)).unmount(force=True, discard=discard)
    deadline = time.monotonic() + _END_PATIENCE
    while (pid := running_pid(mount.name)) is not None:
        if time.monotonic() > deadline:
            raise Conflict(
                f"the daemon of {mount.name} (process {pid}) has not ended after {_END_PATIENCE:g} seconds"
            )
        time.sleep(0.005)


def bundle_of(mount: Mount) -> tuple[Record, Path]:
    """Return the record and the directory of the container *mount*; raise `Conflict` if it does not run.

    One that is being started is waited for: its output is seen before its start is through.
    """
    record = settled(mount.id)
    if record is None or not record.alive():
        raise Conflict(f"{mount.name} is not running: run 'layerfs start {mount.name}' first")
    if running_pid(mount.name) is None:
        raise Conflict(
            f"the daemon of {mount.name}'s filesystem has ended: "
            f"run 'layerfs stop {mount.name}', then 'layerfs start {mount.name}'"
        )
    return record, directory(mount.id)
