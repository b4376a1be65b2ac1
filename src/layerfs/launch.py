"""From a request to mount something to a daemon that answers.

Everything that can be wrong with a request is found before the daemon starts, or reported through a
pipe by the daemon itself, so whoever asked gets one line that says what to do.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from layerfs import errors, mounttable, runtime
from layerfs.errors import BadRequest, Conflict, LayerfsError, from_os_error
from layerfs.fuse import session
from layerfs.ownership import open_own
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Image, Mount

_log = logging.getLogger(__name__)

_PATIENCE = 60.0
"""Seconds that a daemon may take until its mount answers."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What somebody wants mounted, and where.

    An *image*, or *lowers* (plain directories, top-most first, with *upper* and *work* if it is to be
    written to), or, with a *name* alone, the mount of that name as it was left. Without a name one is
    made up, and the mount is forgotten when it is unmounted.
    """

    mountpoint: str
    root: Path
    name: str | None = None
    image: str | None = None
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    read_only: bool = False
    foreground: bool = False
    options: dict[str, str | bool] = field(default_factory=dict)


def start(request: MountRequest) -> str:
    """Mount what *request* asks for; return the mount's name once the mount answers.

    In the foreground this process becomes the daemon, and it returns when the mount has ended.
    Raises `LayerfsError`; then nothing is left behind.
    """
    session.check_device()
    mountpoint = os.path.join(os.path.realpath(os.path.dirname(request.mountpoint.rstrip("/") or "/")), "")
    mountpoint = os.path.normpath(mountpoint + os.path.basename(request.mountpoint.rstrip("/")))
    name = _made_up_name() if request.name is None else runtime.check_name(request.name)
    with runtime.RunLock(name) as lock:
        session.check_mountpoint(mountpoint, name)
        with Store(request.root) as store:
            for line in store.recover():
                _log.warning("%s", line)
            mount, new = _find_or_create(store, request, name)
        try:
            if request.foreground:
                _run(request.root, mount.id, mountpoint, lock, -1)
            else:
                _start_daemon(request.root, mount.id, mountpoint, lock)
        except LayerfsError:
            if new:
                with Store(request.root) as store:
                    store.remove_mount(mount.id)
            raise
    return name


def _made_up_name() -> str:
    return f"mount-{os.urandom(6).hex()}"


def _find_or_create(store: Store, request: MountRequest, name: str) -> tuple[Mount, bool]:
    """Return the mount for *request*, and whether it is new. Raises `LayerfsError`."""
    if request.image is None and not request.lowers:
        if request.read_only or request.options:
            raise BadRequest(f"{name} is mounted again with the options it was made with: leave them out")
        return store.mount(name), False
    same = [mount for mount in store.mounts() if mount.name == name]
    image = store.resolve(request.image) if request.image is not None else None
    if same and _is_same(store, same[0], request, image):
        return same[0], False
    options = dict(request.options)
    if request.read_only:
        options["ro"] = True
    layers = [store.external_layer(Path(path)).id for path in reversed(request.lowers)]
    outside = (Path(request.upper), Path(request.work)) if request.upper and request.work else None
    mount = store.create_mount(
        name,
        image=image,
        layers=layers,
        writable=not request.read_only and (image is not None or outside is not None),
        external_upper=None if request.read_only else outside,
        options=options,
        ephemeral=request.name is None,
    )
    if mount.upper and outside and (committed := store.committed_from(outside[0])):
        _log.warning(
            "layerfs: warning: what was written to %s until its last commit is not below this mount: "
            "'layerfs mount --image %s MOUNTPOINT' shows it",
            outside[0],
            committed[:12],
        )
    return mount, True


def _is_same(store: Store, mount: Mount, request: MountRequest, image: Image | None) -> bool:
    """Tell whether *request* is for *mount* once more, not for another one of the same name.

    fstab and services ask for the same mount at every start; a person who asks for a new mount of an
    image wants a new one.
    """
    if image is not None:
        return request.foreground and mount.image == image.id
    layers = [str(layer.path) for layer in store.layers_of(mount) if layer.state == "external"]
    upper = str(store.layer(mount.upper).path) if mount.upper else None
    wanted = os.path.abspath(request.upper) if request.upper else None
    return upper == wanted and layers == [os.path.abspath(path) for path in reversed(request.lowers)]


def _start_daemon(root: Path, mount_id: str, mountpoint: str, lock: runtime.RunLock) -> None:
    """Fork the daemon and return when it answers; raise what it reports if it does not come to that.

    A fork, not a new interpreter: everything is imported already, which makes mounting quick.
    """
    output = open_own(runtime.log_path(_name_of(lock)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    answer, report = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(answer)
        _be_daemon(root, mount_id, mountpoint, lock, report, output)
    os.close(report)
    os.close(output)
    with os.fdopen(answer, "rb") as pipe:
        in_time, _, _ = select.select([pipe], [], [], _PATIENCE)
        text = pipe.read() if in_time else b""
    if text == b"ok":
        return
    if not in_time:
        os.kill(pid, signal.SIGKILL)
        mounttable.unmount(mountpoint, lazy=True)
    os.waitpid(pid, 0)
    if not text:
        log = runtime.log_path(_name_of(lock))
        raise LayerfsError(f"the daemon ended before the mount answered: see {log}")
    kind, message = json.loads(text)
    raise getattr(errors, kind, LayerfsError)(message)


def _name_of(lock: runtime.RunLock) -> str:
    return lock.path.stem


def _be_daemon(
    root: Path, mount_id: str, mountpoint: str, lock: runtime.RunLock, report: int, log: int
) -> NoReturn:
    """Run as the daemon, in a session of its own with *log* as its output, and end the process."""
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        _close_all_but({lock.fd, report})
        os.chdir("/")
        _run(root, mount_id, mountpoint, lock, report)
        status = 0
    except LayerfsError as error:
        _report(report, json.dumps([type(error).__name__, str(error)]).encode())
        _log.error("%s", error)
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        os._exit(status)


def _close_all_but(kept: set[int]) -> None:
    """Close what the caller's shell left open: one such descriptor would keep some mount busy."""
    start = 3
    for fd in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(start, fd)
        start = fd + 1


class _OneLine(logging.Formatter):
    """Writes a message as one line of printable text, whatever the names in it are made of."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _run(root: Path, mount_id: str, mountpoint: str, lock: runtime.RunLock, report: int) -> None:
    from layerfs.daemon import Daemon

    _log_to_stderr()
    os.umask(0)  # the kernel has applied the caller's umask already
    lock.set_pid(os.getpid())
    try:
        daemon = Daemon(root, mount_id, mountpoint)
        daemon.run(lambda: _report(report, b"ok"))
    except OSError as error:
        if error.errno is not None and error.strerror and "another mount" in error.strerror:
            raise Conflict(f"{os.fsdecode(error.filename)} is {error.strerror}") from None
        raise from_os_error(error, f"mount at {mountpoint}") from error
    if daemon.removed:
        lock.forget()


def _report(pipe: int, text: bytes) -> None:
    """Tell the process that waits, if there is one that still does."""
    if pipe >= 0:
        try:
            os.write(pipe, text)
            os.close(pipe)
        except OSError:
            pass
