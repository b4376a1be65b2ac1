"""netavark(1), which makes a container's network real: bridge, veth pair, addresses, rules, names.

It is told everything on its standard input, for one network at a time, and is told the same to undo it. What
it was told is kept at `RUN/networks/CONTAINER/NETWORK` from before it begins until all is undone, so whatever
is killed in between, somebody later knows what there may be to undo. Names of the containers in a network are
served by aardvark-dns, which netavark starts, and which ends with the last network.

netavark and aardvark-dns are looked for where Debian and Fedora have them; version 1.4 is enough.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from layerfs.container.ociruntime import find_program
from layerfs.errors import Conflict, LayerfsError, NotFound, from_os_error
from layerfs.host import bridges, netns, rundir
from layerfs.host.ownership import open_own
from layerfs.host.record import born

_PLACES = ("/usr/lib/podman", "/usr/libexec/podman", "/usr/local/lib/podman", "/usr/local/libexec/podman")
_LOCK = Path("/run/layerfs-netavark.lock")
"""One for the machine: its firewall is one, and netavark's own steps are not atomic."""
_PATIENCE = 60.0
"""Seconds that netavark may take, and that others who use it are waited for."""
_JUMP = ("FORWARD", "-j", "NETAVARK_ISOLATION_1")

Told = Mapping[str, Any]
"""What netavark is told, an object for JSON."""


def find(name: str) -> str | None:
    """Return the path of netavark or aardvark-dns, None where it is not installed."""
    for directory in _PLACES:
        if os.access(path := f"{directory}/{name}", os.X_OK):
            return path
    return find_program(name)


def check_possible(*, names: bool) -> None:
    """Raise the `NotFound` that says which package a bridge needs, and one whose containers have *names*."""
    if find("netavark") is None:
        raise NotFound("a bridge network needs netavark: install the package netavark, or use --network host")
    if names and find("aardvark-dns") is None:
        raise NotFound(
            "a network with names needs aardvark-dns: "
            "install the package aardvark-dns, or use --network bridge"
        )
    if find_program("iptables") is None:
        raise NotFound("a bridge network needs iptables: install the package iptables, or use --network host")


def namespace_path(mount_id: str) -> Path:
    """Return where the network namespace of a container is mounted."""
    return rundir.run_dir() / "netns" / mount_id


def _directory(mount_id: str) -> Path:
    return rundir.run_dir() / "networks" / mount_id


def known(mount_id: str) -> dict[str, Told]:
    """Return what netavark was told for a container and was not told to undo: by networks, in their order."""
    found: dict[str, Told] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(_directory(mount_id).iterdir()):
            try:
                found[path.name] = json.loads(path.read_bytes())
            except ValueError:  # cut short, so netavark was not started
                path.unlink(missing_ok=True)
    return found


def set_up(mount_id: str, network_id: str, told: Told) -> None:
    """Put the namespace of a container into a network. Raises `LayerfsError`; call `tear_down` then."""
    rundir.make_run_dir()
    path = _directory(mount_id) / network_id
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps(told))
    with _alone():
        if failed := _run("setup", namespace_path(mount_id), told):
            raise LayerfsError(f"netavark: {failed}")
        try:
            for bridge in _bridges(told):
                bridges.keep_address(bridge)
        except OSError as error:
            raise from_os_error(error, "keep the address of a bridge") from None


def tear_down(mount_id: str, network_id: str) -> None:
    """Undo `set_up`, wherever that was cut short, and whether or not the namespace is still there.

    May be repeated. Raises `LayerfsError` when something may be left.
    """
    told = known(mount_id).get(network_id)
    if told is None:
        return
    path = namespace_path(mount_id)
    with _alone():
        failed = "its namespace is gone" if not netns.is_one(path) else _run("teardown", path, told)
        if failed:
            # netavark gives up halfway where an interface is missing. So everything is made once more, in a
            # namespace for this alone, where it then finds all that it is to undo.
            failed = _undo_in_new_namespace(mount_id, told)
        if failed:
            _remove_bridge(told)
        _keep_isolation(told)
    if failed and find("netavark") is not None:
        raise LayerfsError(f"cannot take a network away: netavark: {failed}")
    (_directory(mount_id) / network_id).unlink(missing_ok=True)


def _undo_in_new_namespace(mount_id: str, told: Told) -> str:
    """Return what went wrong, "" for nothing."""
    path = namespace_path(f"{mount_id}.undo")
    try:
        netns.remove(path)
        netns.make(path)
    except OSError as error:
        return f"no namespace: {error.strerror}"
    try:
        _run("setup", path, told)
        return _run("teardown", path, told)
    finally:
        netns.remove(path)


def _remove_bridge(told: Told) -> None:
    """Remove the bridges in *told* that nothing is connected to."""
    for bridge in _bridges(told):
        if bridges.members(bridge) == []:
            with suppress(OSError):
                subprocess.run(["ip", "link", "delete", bridge], capture_output=True, check=False, timeout=10)


def _bridges(told: Told) -> list[str]:
    return [str(network["network_interface"]) for network in told["network_info"].values()]


def add_name(network_id: str, mount_id: str, other_id: str, address: str, name: str) -> None:
    """Have *address*, that of the container *other_id*, found by *name* too in a network.

    For as long as both that one and the container *mount_id* are in it: netavark removes every line with the
    id of a container that leaves. Raises `LayerfsError` and `OSError`.
    """
    with _alone():
        with (_names() / network_id).open("a") as file:
            file.write(f"{mount_id}-{other_id} {address}  {name}\n")
        _read_names_again()


def set_names(network_id: str, mount_id: str, name: str, more: Sequence[str]) -> None:
    """Have the container *mount_id* found in a network by *name* and *more* names, and by no others.

    Names of links to it stay. Raises `LayerfsError` and `OSError`.
    """
    told = known(mount_id).get(network_id)
    if told is None:
        return
    own = {**told["networks"][network_id], "aliases": list(more)}
    told = {**told, "container_name": name, "networks": {network_id: own}}
    with _alone():
        _replace(_directory(mount_id) / network_id, json.dumps(told))
        lines = (_names() / network_id).read_text().splitlines(keepends=True)
        for number, line in enumerate(lines):
            fields = line.split(" ")  # the id, an address of each kind or nothing, the names, and servers
            if fields[0] == mount_id and len(fields) > 3:
                fields[3] = ",".join([name, *more]) + "\n" * fields[3].endswith("\n")
                lines[number] = " ".join(fields)
        _replace(_names() / network_id, "".join(lines))
        _read_names_again()


def _names() -> Path:
    """Return the directory in which aardvark-dns finds which names there are, a file a network."""
    return rundir.run_dir() / "dns" / "aardvark-dns"


def _read_names_again() -> None:
    with suppress(OSError, ValueError):
        os.kill(int((_names() / "aardvark.pid").read_text()), signal.SIGHUP)


def _replace(path: Path, text: str) -> None:
    """Replace the file *path* at once; the new one is made where nobody looks for files."""
    unfinished = path.parent.parent / f"{path.name}.unfinished"
    unfinished.write_text(text)
    unfinished.rename(path)


def forget(mount_id: str) -> None:
    """Remove the namespace of a container and what is known of it; may be repeated. Raises `OSError`."""
    netns.remove(namespace_path(mount_id))
    with suppress(OSError):
        _directory(mount_id).rmdir()


def _run(command: str, namespace: Path, told: Told) -> str:
    """Run netavark; return what went wrong, "" for nothing."""
    program = find("netavark")
    if program is None:
        return "it is not installed: install the package netavark"
    config = rundir.run_dir() / "dns"
    config.mkdir(mode=0o700, exist_ok=True)
    _forget_dead_dns(config)
    words = [program, "--config", str(config)]
    if dns := find("aardvark-dns"):
        words += ["--aardvark-binary", dns]
    # Files, not pipes: aardvark-dns inherits them, and would keep a pipe open for as long as it lives.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write(json.dumps(told).encode())
        given.seek(0)
        try:
            done = subprocess.run(
                [*words, command, str(namespace)],
                stdin=given,
                stdout=output,
                stderr=output,
                cwd="/",
                env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it did not answer within {_PATIENCE:g} seconds"
        except OSError as error:
            return f"it does not start: {error.strerror}"
        if done.returncode == 0:
            return ""
        output.seek(0)
        return _said(output.read(65536).decode(errors="replace"))


def _said(text: str) -> str:
    """Return what netavark said was wrong: an object with the member "error"."""
    for line in reversed(text.splitlines()):
        with suppress(ValueError, TypeError, KeyError):
            return " ".join(str(json.loads(line)["error"]).split())
    return " ".join(text.split())[-300:] or "it failed without a word"


@contextmanager
def _alone() -> Iterator[None]:
    """Let no other process of the machine use netavark for us while the block lasts; raises `Conflict`."""
    fd = open_own(_LOCK, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + _PATIENCE
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise Conflict(
                    f"waited {_PATIENCE:g} seconds: another process is setting up a container's network"
                )
            time.sleep(0.005)
        yield
    finally:
        os.close(fd)


def _keep_isolation(told: Told) -> None:
    """Have packets between networks dropped still: netavark 1.4 ends that for all networks with the first."""
    if all(bridges.members(bridge) is not None for bridge in _bridges(told)):
        return  # other containers are in them
    networks = told["network_info"].values()
    names = ("iptables", "ip6tables") if any(it["ipv6_enabled"] for it in networks) else ("iptables",)
    for name in names:
        if (program := find_program(name)) is None:
            continue
        with suppress(subprocess.TimeoutExpired):
            rules = _firewall(program, "-S", "NETAVARK_ISOLATION_1").stdout.splitlines()
            used = any(rule.startswith("-A") for rule in rules)
            if used and _firewall(program, "-C", *_JUMP).returncode != 0:
                _firewall(program, "-I", *_JUMP)


def _firewall(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, "-w", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )


def _forget_dead_dns(config: Path) -> None:
    """Have netavark start aardvark-dns anew if it was killed, and signal nobody who has its pid now."""
    note = config / "aardvark-dns" / "aardvark.pid"
    try:
        pid = int(note.read_text())
        lives = born(pid) is not None and Path(f"/proc/{pid}/comm").read_text().strip() == "aardvark-dns"
    except (OSError, ValueError):
        lives = False
    if not lives:
        note.unlink(missing_ok=True)
