"""A container's way from an image to its end: made, started, stopped, cleared away after, removed.

Whoever finds that a container has ended may clear away after it: the command that waits for it, the one
that its supervisor runs, or the next one that is asked about it. They take turns (`record.Lock`), and the
first one does it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container import files, networks, ociruntime, supervisor, volumes
from layerfs.container.ociruntime import ContainerError, Runtime
from layerfs.errors import Conflict, Forbidden, LayerfsError, NotFound, from_os_error
from layerfs.host.mounttable import mounted_at
from layerfs.host.record import Lock, Record, Watch, born, directory, look
from layerfs.host.rundir import forget, running_pid
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Mount

UNKNOWN = 255
"""The exit code of a container of which nobody knows how it ended, as Docker's after a crash."""
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


def start(root: Path, mount: Mount, before: Callable[[Record], None] = lambda record: None) -> bool:
    """Mount the tree of the container *mount* and start its process; return False if it runs already.

    *before* is called when everything is ready but the process has not begun: attach then, and no output
    is missed. Raises `LayerfsError`; then nothing of it runs, and the reason is noted in the store.
    """
    check_possible()
    with Lock(mount.id) as lock:
        with Store(root) as store:
            mount = store.mount(mount.id)
        record = lock.read()
        if record and record.alive():
            return False
        if record:
            _finish(root, mount, lock, record)
            if mount.container["AutoRemove"]:
                raise NotFound(f"no such mount: {mount.name}")
        with _interruptible():
            try:
                _take_down(root, mount, lock)  # what is left of a start that was killed, if anything
                lock.clear()
                _start(root, mount, lock, before)
            except BaseException as error:
                if isinstance(error, OSError):
                    error = from_os_error(error, f"start {mount.name}")
                _undo(root, mount, lock, error)
                raise error from None
    return True


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let signals that would end this process raise `KeyboardInterrupt`: there is something to undo."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _start(root: Path, mount: Mount, lock: Lock, before: Callable[[Record], None]) -> None:
    from layerfs.mounting import launch

    tree = lock.path / "rootfs"
    with suppress(FileExistsError):
        os.mkdir(tree)
    if running_pid(mount.name) is not None:
        raise Conflict(f"{mount.name} is mounted on {mount.mountpoint}: unmount it first")
    launch.start(launch.MountRequest(mountpoint=str(tree), root=root, name=mount.name))
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
            mount.id, "start", StartedAt=started.isoformat(), FinishedAt=None, ExitCode=0, Error=""
        )


def _write_spec(root: Path, mount: Mount, bundle: Path, tree: Path, network: networks.Prepared) -> None:
    """Write what the runtime has to know. Raises `LayerfsError` and `OSError`."""
    from layerfs.container import spec, users
    from layerfs.store import imageconfig

    imageconfig.check(mount.config, f"the configuration of {mount.name}")
    settings = mount.container
    hostname = settings["Hostname"] or mount.id[:12]
    own = files.directory(root, mount.id)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    named = files.network_files(own, hostname, network.mode, network.hosts, network.resolv)
    points = volumes.from_binds(settings["Binds"], mount.config)
    ready = volumes.set_up(root, mount, tree, points)
    binds = [[it["Source"], it["Destination"], "rw" if it["RW"] else "ro"] for it in ready]
    files.host_directories(binds)
    taken = {destination for _, destination, _ in binds}
    mounts = [bind for bind in named if bind[1] not in taken] + binds
    built = spec.build(
        mount_id=mount.id,
        root=tree,
        config=mount.config,
        user=users.find_user(tree, mount.config.get("User") or ""),
        hostname=hostname,
        network=network.mode,
        terminal=settings["Tty"],
        binds=sorted(mounts, key=lambda bind: bind[1].count("/")),  # what lies deeper comes later
    )
    network.enter(built)
    (bundle / "config.json").write_text(json.dumps(built), errors="surrogateescape")


def _create(root: Path, mount: Mount, bundle: Path, network: networks.Prepared) -> tuple[Runtime, int]:
    """Create the container by the first runtime that can; return it and the pid of the first process."""
    settings = mount.container
    wanted = supervisor.Supervised(
        mount_id=mount.id,
        bundle=bundle,
        log=files.log_path(root, mount.id),
        root=root,
        terminal=settings["Tty"],
        stdin=settings["OpenStdin"],
        stdin_stays_open=not settings["StdinOnce"],
        holds=tuple(one.fileno() for one in network.sockets),
    )
    wanted.log.touch(mode=0o600)
    conmon = supervisor.find_conmon()
    first: ContainerError | None = None
    for oci_runtime in _chosen or ociruntime.installed():
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
    status = error.exit_code if isinstance(error, ContainerError) else 125
    record = lock.read()
    with suppress(LayerfsError, OSError):
        _take_down(root, mount, lock)
        with Store(root) as store:
            if mount.container["AutoRemove"]:
                store.remove_mount(mount.id, volumes=True)
                forget(mount.name)
            else:
                store.update_container(mount.id, "die", ExitCode=status, Error=str(error))
        if record:
            lock.write(Record(record.pid, record.born, record.runtime, status))
        lock.discard()


def _take_down(root: Path, mount: Mount | None, lock: Lock) -> None:
    """Take away a container that was made but perhaps not started, whoever made it. Raises `LayerfsError`."""
    record = lock.read()
    if not lock.is_empty():
        for oci_runtime in [Runtime(record.runtime)] if record else ociruntime.installed():
            oci_runtime.delete(lock.path.name)
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
    mount_id = lock.path.name
    noted = supervisor.exit_code(lock.path, mount_id)
    code = UNKNOWN if noted is None else noted
    finished = datetime.now(UTC)
    Runtime(record.runtime).delete(mount_id)
    networks.take_down(root, mount_id)
    volumes.take_down(root, mount_id)
    if mount is not None:
        _unmount(root, mount)
        with Store(root) as store, suppress(NotFound):
            if store.mount(mount_id).container["AutoRemove"]:
                store.remove_mount(mount_id, volumes=True)
                forget(mount.name)
            else:
                why = "" if noted is not None else "its supervisor ended before it did"
                store.update_container(
                    mount_id, "die", FinishedAt=finished.isoformat(), ExitCode=code, Error=why
                )
    lock.write(Record(record.pid, record.born, record.runtime, code))
    return code


def _unmount(root: Path, mount: Mount) -> None:
    """Unmount the tree of a container, whoever may already be doing that. Raises `LayerfsError`."""
    from layerfs.client.client import Client

    with suppress(Conflict, NotFound):  # it is being unmounted, or is not mounted any more
        Client.local(root).request("POST", "/layerfs/unmount", name=mount.id, force=True)
    deadline = time.monotonic() + _END_PATIENCE
    while (pid := running_pid(mount.name)) is not None:
        if time.monotonic() > deadline:
            raise Conflict(
                f"the daemon of {mount.name} (process {pid}) has not ended after {_END_PATIENCE:g} seconds"
            )
        time.sleep(0.005)


def bundle_of(mount: Mount) -> tuple[Record, Path]:
    """Return the record and the directory of the container *mount*; raise `Conflict` if it does not run."""
    record = look(mount.id)
    if record is None or not record.alive():
        raise Conflict(f"{mount.name} is not running: run 'layerfs start {mount.name}' first")
    if running_pid(mount.name) is None:
        raise Conflict(
            f"the daemon of {mount.name}'s filesystem has ended: "
            f"run 'layerfs stop {mount.name}', then 'layerfs start {mount.name}'"
        )
    return record, directory(mount.id)
