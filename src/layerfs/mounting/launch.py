"""From a request to mount something to a daemon that answers.

Everything that can be wrong with a request is found before the daemon starts, or reported through a
pipe by the daemon itself, so whoever asked gets one line that says what to do.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from layerfs import errors
from layerfs.errors import BadRequest, Conflict, LayerfsError, NotFound, from_os_error
from layerfs.fuse import session
from layerfs.host import holders, mounttable, rundir
from layerfs.host.ownership import open_own
from layerfs.host.polling import readable
from layerfs.mounting.request import MountRequest
from layerfs.store import Store, external

if TYPE_CHECKING:
    from layerfs.mounting.served import Serve
    from layerfs.store.model import Image, Mount

_log = logging.getLogger(__name__)

_PATIENCE = 60.0
"""Seconds that a daemon may take until its mount answers."""
_END_BY_ITSELF = 2.0
"""Seconds that a daemon may take to end after it was unmounted, before it is asked to."""
_END_PATIENCE = 10.0
"""Seconds that a process may take to end that has nothing else to do."""


def start(request: MountRequest, serve: Serve) -> str:
    """Mount what *request* asks for; return the mount's name once the mount answers.

    The daemon has *serve* answer on the socket of the mount.
    In the foreground this process becomes the daemon, and it returns when the mount has ended.
    Raises `LayerfsError`; then nothing is left behind.
    """
    return _start(request, serve, -1)


def become(request: MountRequest, serve: Serve, reply: int) -> NoReturn:
    """Be the daemon of what *request* asks for, in this process, which was forked for that: a fork less.

    JSON is written to the descriptor *reply* once the mount answers, or when it never will: of a list of an
    empty text and the name of the mount, or of the kind of a `LayerfsError` and its text. Raises
    `LayerfsError` for what is found before; then nothing is left behind. Does not return.
    """
    _start(request, serve, reply)
    os._exit(0)


def _start(request: MountRequest, serve: Serve, reply: int) -> str:
    session.check_device()
    mountpoint = mounttable.resolve(request.mountpoint)
    name = _made_up_name() if request.name is None else rundir.check_name(request.name)
    with _run_lock(name) as lock:
        with Store(request.root) as store:
            _clear_away(store, name, lock)
            lock.set_pid(os.getpid())
            session.check_mountpoint(mountpoint)
            _wait_for_upper(store, request, name)
            for line in store.recover() if request.recover else ():
                _log.warning("%s", line)
            mount, new = _find_or_create(store, request, name)
        read_only = request.read_only or bool(mount.options.get("ro"))
        wanted = _Wanted(request.root, mount.id, mountpoint, request.source or name, read_only)
        try:
            if request.foreground:
                _run(wanted, lock, _Report(-1), serve)
            elif reply >= 0:
                signal.alarm(int(_PATIENCE))  # nobody else waits for this process
                report = _Report(reply, json.dumps(["", name]).encode())
                undo = partial(_remove_new, request.root, mount.id) if new else None
                _be_daemon(wanted, lock, report, _open_log(lock), serve, undo)
            else:
                _start_daemon(wanted, lock, serve)
        except LayerfsError:
            if new:
                _remove_new(request.root, mount.id)
            raise
    return name


def _remove_new(root: Path, mount_id: str) -> None:
    """Remove a mount that was made for a daemon that has not come up."""
    # A daemon that ended by itself has removed a mount without a name: what it said counts.
    with suppress(NotFound), Store(root) as store:
        store.remove_mount(mount_id)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a daemon is to do."""

    root: Path
    mount_id: str
    mountpoint: str
    source: str
    read_only: bool


def _run_lock(name: str) -> rundir.RunLock:
    """Return the run lock of *name*, once a daemon has ended that has its mount no more. Raises `Conflict`.

    Who unmounts with umount(2), and mounts again at once, comes before the daemon has cleared away.
    """
    _wait_for_end(name)
    return rundir.RunLock(name)


def _wait_for_end(name: str) -> None:
    """Return when no daemon runs *name*, if it is about to end; raise `Conflict` if it is not.

    One that was unmounted here, and that other mount namespaces have copies of, ends by itself when those are
    gone. Where nobody uses them it is made to end.
    """
    deadline = time.monotonic() + _END_PATIENCE
    look = time.monotonic() + _END_BY_ITSELF
    while True:
        pid, device = rundir.running(name)
        if pid is None:
            return
        if device is not None and (there := mounttable.mounts_of(device, pid)):
            raise Conflict(f"{name} is mounted at {there[-1].place} already (process {pid})")
        if time.monotonic() > deadline:
            break
        if time.monotonic() > look and device is not None:
            look += _END_BY_ITSELF
            if not holders.users(device):
                _ask_to_end(name)
        time.sleep(0.005)
    if device is None:
        raise Conflict(
            f"{name} is being mounted or unmounted by process {pid}, which does not come to an end"
        )
    who = holders.describe(holders.users(device) or holders.namespaces(device)) or "somebody still uses it"
    raise Conflict(f"{name} was unmounted, but {who}: end that, or run 'layerfs umount {name}'")


def _ask_to_end(name: str) -> None:
    """Have the daemon of *name* end, of whose mount there are only copies that nobody uses."""
    from layerfs.mounting.exchange import exchange

    with suppress(LayerfsError):
        exchange(name, "POST", "/layerfs/unmount", [("force", "1")])


def _clear_away(store: Store, name: str, lock: rundir.RunLock) -> None:
    """Take away what a daemon of *name* left that has died, wherever that was mounted."""
    mountpoint = store.mountpoint_of(name)
    if mountpoint is not None:
        mounttable.detach(mountpoint, lock.device)


def _wait_for_upper(store: Store, request: MountRequest, name: str) -> None:
    """Wait for the daemon of a mount, of another name, that had the upper of *request* until just now."""
    if request.upper is None:
        return
    wanted = str(external.place_of(Path(request.upper)))
    for mount in store.mounts():
        if mount.upper and mount.name != name and str(store.layer(mount.upper).path) == wanted:
            pid, device = rundir.running(mount.name)
            if pid is not None and not (device is not None and mounttable.mounts_of(device, pid)):
                _wait_for_end(mount.name)


def _made_up_name() -> str:
    return f"mount-{os.urandom(6).hex()}"


def _find_or_create(store: Store, request: MountRequest, name: str) -> tuple[Mount, bool]:
    """Return the mount for *request*, and whether it is new. Raises `LayerfsError`."""
    if request.image is None and not request.lowers:
        if request.options:
            raise BadRequest(f"{name} is mounted again with the options it was made with: leave them out")
        return store.mount(name), False
    same = [mount for mount in store.mounts() if mount.name == name]
    image = store.resolve(request.image) if request.image is not None else None
    if same and _is_same(store, same[0], request, image):
        return _as_requested(store, same[0], request), False
    layers = [store.external_layer(Path(path)).id for path in reversed(request.lowers)]
    outside = (Path(request.upper), Path(request.work) if request.work else None) if request.upper else None
    mount = store.create_mount(
        name,
        image=image,
        layers=layers,
        writable=not request.read_only and (image is not None or outside is not None),
        external_upper=outside,
        options=_options_of(request),
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


def _as_requested(store: Store, mount: Mount, request: MountRequest) -> Mount:
    """Return *mount* with the options and the work directory of *request*.

    The request counts, not what the mount was made with: who adds nosuid to a line of fstab relies on it.
    """
    work = Path(request.work).absolute() if request.work and not request.read_only else None
    other_work = work is not None and mount.upper is not None and store.layer(mount.upper).work != work
    options = _options_of(request)
    if other_work or options != {name: mount.options[name] for name in mount.options if name != "container"}:
        store.set_options(mount.id, options, work)
        return store.mount(mount.name)
    return mount


def _options_of(request: MountRequest) -> dict[str, str | bool]:
    """Return the options of a mount for *request*, as the store keeps them."""
    return {**request.options, "ro": True} if request.read_only else request.options


def _is_same(store: Store, mount: Mount, request: MountRequest, image: Image | None) -> bool:
    """Tell whether *request* is for *mount* once more, not for another one of the same name.

    fstab and services ask for the same mount at every start; a person who asks for a new mount of an
    image wants a new one.
    """
    if image is not None:
        return request.foreground and mount.image == image.id
    layers = [str(layer.path) for layer in store.layers_of(mount) if layer.state == "external"]
    upper = str(store.layer(mount.upper).path) if mount.upper else None
    given = Path(request.upper).absolute() if request.upper else None
    wanted = [str(given and external.place_of(given)), str(given)]  # an older layerfs has noted a link
    return str(upper) in wanted and layers == [os.path.abspath(path) for path in reversed(request.lowers)]


def _start_daemon(wanted: _Wanted, lock: rundir.RunLock, serve: Serve) -> None:
    """Fork the daemon and return when it answers; raise what it reports if it does not come to that.

    A fork, not a new interpreter: everything is imported already, which makes mounting quick.
    """
    output = _open_log(lock)
    answer, report = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(answer)
        _be_daemon(wanted, lock, _Report(report), output, serve)
    os.close(report)
    os.close(output)
    with os.fdopen(answer, "rb") as pipe:
        in_time = readable([pipe.fileno()], _PATIENCE)
        text = pipe.read() if in_time else b""
    if text == b"ok":
        return
    log = rundir.log_path(_name_of(lock))
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    if not _has_ended(pid):
        raise LayerfsError(
            f"waited {_PATIENCE:g} seconds for process {pid} to mount: it neither does nor ends; see {log}"
        )
    if not in_time:
        mounttable.detach(wanted.mountpoint, rundir.running(_name_of(lock))[1])
        raise LayerfsError(f"the mount did not answer within {_PATIENCE:g} seconds: see {log}")
    if not text:
        raise LayerfsError(f"the daemon ended before the mount answered: see {log}")
    kind, message = json.loads(text)
    raise getattr(errors, kind, LayerfsError)(message)


def _open_log(lock: rundir.RunLock) -> int:
    return open_own(rundir.log_path(_name_of(lock)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _has_ended(pid: int) -> bool:
    """Wait for the end of a child, for some seconds; return whether it has come."""
    deadline = time.monotonic() + _END_PATIENCE
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _name_of(lock: rundir.RunLock) -> str:
    return lock.path.stem


def _be_daemon(
    wanted: _Wanted,
    lock: rundir.RunLock,
    report: _Report,
    log: int,
    serve: Serve,
    undo: Callable[[], None] | None = None,
) -> NoReturn:
    """Run as the daemon, in a session of its own with *log* as its output, and end the process.

    *undo* is done where the mount does not come up, before that is said.
    """
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        _close_all_but({lock.fd, report.pipe})
        os.chdir("/")
        _run(wanted, lock, report, serve)
        status = 0
    except LayerfsError as error:
        if undo is not None and report.pipe >= 0:
            with suppress(LayerfsError):
                undo()
        report.give(json.dumps([type(error).__name__, str(error)]).encode())
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


def _run(wanted: _Wanted, lock: rundir.RunLock, report: _Report, serve: Serve) -> None:
    from layerfs.mounting.daemon import Daemon

    _log_to_stderr()
    os.umask(0)  # the kernel has applied the caller's umask already
    lock.set_pid(os.getpid())
    try:
        daemon = Daemon(wanted.root, wanted.mount_id, wanted.mountpoint, wanted.source, wanted.read_only)
        daemon.run(serve, lock.set_device, lambda: report.give(report.mounted))
    except OSError as error:
        if error.errno is not None and error.strerror and "another mount" in error.strerror:
            raise Conflict(f"{os.fsdecode(error.filename)} is {error.strerror}") from None
        raise from_os_error(error, f"mount at {wanted.mountpoint}") from error
    finally:
        lock.remove_socket()
    if daemon.removed:
        lock.forget()


class _Report:
    """The one word of a daemon to the process that waits for its mount, on *pipe*; without one (-1) none."""

    def __init__(self, pipe: int, mounted: bytes = b"ok") -> None:
        """*mounted* is what to say of a mount that answers."""
        self.pipe = pipe
        self.mounted = mounted

    def give(self, text: bytes) -> None:
        """Say *text*, if nothing has been said: after that the descriptor's number is somebody else's."""
        pipe, self.pipe = self.pipe, -1
        if pipe >= 0:
            signal.alarm(0)
            with suppress(OSError):  # nobody waits any more
                os.write(pipe, text)
            os.close(pipe)
