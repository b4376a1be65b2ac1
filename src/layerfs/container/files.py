"""What a container gets besides its tree: the network's files, and what its volumes begin with.

The former lie in the store, at `containers/ID/`, beside its log: they are no part of what a commit seals,
live as long as the container, and are removed with it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from layerfs.container.rootfs import open_inside
from layerfs.errors import BadRequest, LayerfsError, from_os_error

_LOCAL = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def directory(store: Path, mount_id: str) -> Path:
    """Return the directory of a container in the store at *store*."""
    return store / "containers" / mount_id


def log_path(store: Path, mount_id: str) -> Path:
    """Return the path of the log of what a container wrote."""
    return directory(store, mount_id) / "log"


def network_files(
    own: Path, hostname: str, network: str, lines: Sequence[str] = (), resolv: str | None = None
) -> list[list[str]]:
    """Write /etc/hosts, /etc/hostname and /etc/resolv.conf into the directory *own*; return them as binds.

    On the host's network they say what the host's do. *lines* are for /etc/hosts, and with an address for
    *hostname* among them; *resolv* is the text of /etc/resolv.conf. Raises `OSError`.
    """
    hosts = _text("/etc/hosts") if network == "host" else _LOCAL
    if resolv is None:
        resolv = _text("/etc/resolv.conf") if network == "host" else ""
    text = "\n".join(lines or [f"127.0.1.1\t{hostname}"])
    contents = {
        "hosts": f"{hosts.rstrip()}\n{text}\n",
        "hostname": f"{hostname}\n",
        "resolv.conf": resolv,
    }
    for name, content in contents.items():
        path = own / name
        path.write_text(content, errors="surrogateescape")
        path.chmod(0o644)
    return [[str(own / name), f"/etc/{name}", "rw"] for name in contents]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""


def host_directories(binds: list[list[str]]) -> None:
    """Make the host directories of *binds* that are not there, as Docker does; raises `LayerfsError`."""
    for host, _, _ in binds:
        try:
            os.stat(host)
        except FileNotFoundError:
            try:
                os.makedirs(host, 0o755, exist_ok=True)
            except OSError as error:
                raise from_os_error(error, "make the directory of a volume") from None
        except OSError as error:
            raise from_os_error(error, "use the directory of a volume") from None


def fill(volume: Path, root: Path, path: str, *, in_place: bool) -> None:
    """Make the empty directory *volume* a copy of the directory *path* below *root*, if there is one.

    Whole or not at all, unless it is done *in_place*: where *volume* is a mountpoint, or others have it
    mounted. Raises `LayerfsError`.
    """
    unfinished = volume if in_place else volume.with_name(volume.name + ".new")
    try:
        if not in_place:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o755)
        try:
            source = open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if not in_place:
                unfinished.rmdir()
            return
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise BadRequest(f"the container has a volume at {path}, but a file is there") from None
        raise from_os_error(error, f"fill the volume at {path}") from None
    try:
        done = subprocess.run(
            ["cp", "-a", "--reflink=auto", f"/proc/self/fd/{source}/.", unfinished],
            pass_fds=(source,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    finally:
        os.close(source)
    if done.returncode != 0:
        if not in_place:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise LayerfsError(f"cannot fill the volume at {path}: {done.stderr.partition(chr(10))[0]}")
    if not in_place:
        unfinished.rename(volume)
