"""What a container gets besides its tree: the network's files, and its volumes.

They lie in the store, at `containers/ID/`, beside its log: they are no part of what a commit seals, live
as long as the container, and are removed with it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def network_files(own: Path, hostname: str, network: str) -> list[list[str]]:
    """Write /etc/hosts, /etc/hostname and /etc/resolv.conf into the directory *own*; return them as binds.

    On the host's network they say what the host's do. Raises `OSError`.
    """
    hosts = _text("/etc/hosts") if network == "host" else _LOCAL
    contents = {
        "hosts": f"{hosts.rstrip()}\n127.0.1.1\t{hostname}\n",
        "hostname": f"{hostname}\n",
        "resolv.conf": _text("/etc/resolv.conf") if network == "host" else "",
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


def image_volumes(own: Path, root: Path, config: Mapping[str, Any], taken: set[str]) -> list[list[str]]:
    """Return binds for the `Volumes` of *config*, but for those destinations that are *taken*.

    Each is a directory below *own*. A new one begins with what the image mounted at *root* has there.
    Raises `LayerfsError`.
    """
    binds = []
    for number, path in enumerate(sorted(config.get("Volumes") or ())):
        destination = os.path.normpath(path)
        if not path.startswith("/") or destination in ("/", "//"):
            raise BadRequest(f"the image has a volume {path!r}, which is no absolute path below /")
        if destination in taken:
            continue
        volume = own / "volumes" / str(number)
        if not volume.exists():
            _fill(volume, root, destination)
        binds.append([str(volume), destination, "rw"])
    return binds


def _fill(volume: Path, root: Path, path: str) -> None:
    """Make *volume* a copy of the directory *path* below *root*, or an empty directory where it has none."""
    unfinished = volume.with_name(volume.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        try:
            source = open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            unfinished.rename(volume)
            return
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise BadRequest(f"the image has a volume {path}, but a file is there") from None
        raise from_os_error(error, f"make the volume {path}") from None
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
        shutil.rmtree(unfinished, ignore_errors=True)
        raise LayerfsError(f"cannot fill the volume {path}: {done.stderr.partition(chr(10))[0]}")
    unfinished.rename(volume)
