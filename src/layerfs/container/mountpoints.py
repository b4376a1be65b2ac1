"""What is mounted in a container beside its root: `Binds`, `Mounts`, `Tmpfs` and `Volumes`, as one list.

Each becomes a mount point: a JSON object with the members of Docker's `MountPoint`, which inspect shows, and
below "Spec" what else was asked for. Rules and messages are those of moby's `daemon/volume/mounts`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from layerfs.container import tmpfs
from layerfs.container.members import Members
from layerfs.errors import BadRequest

Point = dict[str, Any]
_ACCESS = ("rw", "ro")
_LABELS = ("z", "Z")
_COPY = ("nocopy",)
_CONSISTENCY = ("default", "consistent", "cached", "delegated")
PROPAGATIONS = ("rprivate", "private", "rshared", "shared", "rslave", "slave")
_MODES = (_ACCESS, _LABELS, PROPAGATIONS, _COPY, _CONSISTENCY)
"""The words of a mode, of each kind one at most."""
_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")


def taken(members: Members) -> list[dict[str, Any]] | None:
    """Return the member `Mounts` with the types that it must have; raises `BadRequest`."""
    return members.each("Mounts", _mount)


def _mount(mount: Members) -> dict[str, Any]:
    result: dict[str, Any] = {name: mount.text(name) for name in ("Type", "Source", "Target")}
    result["ReadOnly"] = mount.flag("ReadOnly")
    if mount.given("Consistency"):
        result["Consistency"] = mount.text("Consistency")
    if bind := mount.member("BindOptions"):
        flags = ("NonRecursive", "CreateMountpoint", "ReadOnlyNonRecursive", "ReadOnlyForceRecursive")
        result["BindOptions"] = {"Propagation": bind.text("Propagation"), **{f: bind.flag(f) for f in flags}}
    if volume := mount.member("VolumeOptions"):
        driver = volume.member("DriverConfig")
        result["VolumeOptions"] = {
            "NoCopy": volume.flag("NoCopy"),
            "Labels": volume.pairs("Labels"),
            "Subpath": volume.text("Subpath"),
            "DriverConfig": driver and {"Name": driver.text("Name"), "Options": driver.pairs("Options")},
        }
    if memory := mount.member("TmpfsOptions"):
        result["TmpfsOptions"] = {
            "SizeBytes": memory.number("SizeBytes"),
            "Mode": memory.number("Mode"),
            "Options": tmpfs.options(memory),
        }
    for name in ("ImageOptions", "ClusterOptions"):
        if mount.given(name):
            raise BadRequest(f'invalid mount config for type "{result["Type"]}": {name} is not supported')
    return result


def points(
    host_config: Mapping[str, Any], volumes: Iterable[str], inherited: Callable[[str], Iterable[Point]]
) -> list[Point]:
    """Return what is to be mounted in a container; raises `BadRequest`.

    *volumes* are the destinations in the configuration's `Volumes`, which give way to anything else; they and
    what else names no volume get new names here. *inherited* returns the mount points of another container.
    """
    driver = host_config["VolumeDriver"]
    found: dict[str, Point] = {}
    for text in host_config["VolumesFrom"] or ():
        found |= {point["Destination"]: point for point in _inherited(text, inherited)}
    given = [_bind(text, driver) for text in host_config["Binds"] or ()]
    given += [_point(mount) for mount in host_config.get("Mounts", ())]
    taken_now = {os.path.normpath(path) for path in host_config.get("Tmpfs", ())}
    for path in host_config.get("Tmpfs", ()):
        _check_target(path)
    for point in given:
        if point["Destination"] in taken_now:
            raise BadRequest(f"Duplicate mount point: {point['Destination']}")
        taken_now.add(point["Destination"])
        found[point["Destination"]] = point
    for path in volumes:
        destination = os.path.normpath(path)
        if not path.startswith("/") or destination in ("/", "//"):
            raise BadRequest(f"invalid volume {path!r}: a volume must be an absolute path other than /")
        if destination not in found and destination not in taken_now:
            found[destination] = _volume("", destination, driver, writable=True, mode="")
    return list(found.values())


def _inherited(text: str, inherited: Callable[[str], Iterable[Point]]) -> list[Point]:
    """Return the mount points that `--volumes-from` *text* brings: `NAME[:ro]`."""
    name, _, mode = text.partition(":")
    if not name:
        raise BadRequest("volumes-from specification cannot be an empty string")
    words = mode.split(",") if mode else []
    if not _is_mode(words) or set(words) & {*PROPAGATIONS, *_COPY}:
        raise BadRequest(f'invalid mode: "{mode[:80]}"')
    return [
        {**point, "RW": point["RW"] and "ro" not in words, "Spec": {**point["Spec"], "NoCopy": True}}
        for point in inherited(name)
    ]


def _bind(text: str, driver: str) -> Point:
    """Return what `SOURCE:DESTINATION[:MODE]` asks for, or a destination alone."""
    parts = text.split(":", 3)
    source, destination, mode = "", parts[0], ""
    if len(parts) in (2, 3):
        source, destination = parts[:2]
        mode = parts[2] if len(parts) == 3 else ""
    words = mode.split(",") if mode else []
    if not parts[0] or len(parts) == 4 or (len(parts) == 2 and _is_mode([destination])):
        raise _invalid(text)
    if not _is_mode(words) or mode.endswith(","):
        raise BadRequest(f'invalid mode: "{mode[:80]}"')
    try:
        _check_target(destination)
    except BadRequest as error:
        raise BadRequest(f"{_invalid(text)}: {error}") from None
    destination = os.path.normpath(destination)
    writable = "ro" not in words
    propagation = next((word for word in words if word in PROPAGATIONS), "")
    if source.startswith("/"):
        spec = {"CreateMountpoint": True, "Propagation": propagation}
        return _host_path(source, destination, writable=writable, mode=mode, spec=spec)
    return _volume(
        source, destination, driver, writable=writable, mode=mode or "z", no_copy="nocopy" in words
    )


def _invalid(text: str) -> BadRequest:
    return BadRequest(f'invalid volume specification: "{text[:200]}"')


def _is_mode(words: Iterable[str]) -> bool:
    """Return whether *words* are a mode: of each kind one at most."""
    kinds = [next((kind for kind in _MODES if word in kind), None) for word in words]
    return None not in kinds and len(set(kinds)) == len(kinds)


def _check_target(path: str) -> None:
    if os.path.normpath(path or ".") in ("/", "//"):
        raise BadRequest("invalid specification: destination can't be '/'")
    if not path.startswith("/"):
        raise BadRequest(f"invalid mount path: '{path[:200]}' mount path must be absolute")


def _point(mount: Mapping[str, Any]) -> Point:
    """Return what an item of `Mounts` asks for."""
    kind, source, target = mount["Type"], mount["Source"], mount["Target"]
    try:
        for member, owner in (
            ("BindOptions", "bind"),
            ("VolumeOptions", "volume"),
            ("TmpfsOptions", "tmpfs"),
        ):
            if member in mount and kind != owner:
                raise BadRequest(f"field {member} must not be specified")
        if not target:
            raise BadRequest("field Target must not be empty")
        _check_target(target)
        destination, writable = os.path.normpath(target), not mount["ReadOnly"]
        if kind == "bind":
            return _checked_bind(mount, source, destination, writable=writable)
        if kind == "volume":
            return _named_volume(mount, source, destination, writable=writable)
        if kind == "tmpfs":
            if source:
                raise BadRequest("field Source must not be specified")
            text = tmpfs.text(mount.get("TmpfsOptions") or {}, writable=writable)
            return _described("tmpfs", "", destination, writable=writable, spec={"Options": text})
        if kind in ("image", "cluster", "npipe"):
            raise BadRequest("mounts of this type are not supported")
        raise BadRequest("mount type unknown")
    except BadRequest as error:
        raise BadRequest(f'invalid mount config for type "{kind[:80]}": {error}') from None


def _checked_bind(mount: Mapping[str, Any], source: str, destination: str, *, writable: bool) -> Point:
    options = mount.get("BindOptions") or {}
    if not source:
        raise BadRequest("field Source must not be empty")
    if options.get("Propagation") and options["Propagation"] not in PROPAGATIONS:
        raise BadRequest(f"invalid propagation mode: {options['Propagation'][:80]}")
    if options.get("ReadOnlyNonRecursive") and options.get("ReadOnlyForceRecursive"):
        raise BadRequest("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
    if not source.startswith("/"):
        raise BadRequest(f"invalid mount path: '{source[:200]}' mount path must be absolute")
    if not options.get("CreateMountpoint") and not os.path.exists(source):
        raise BadRequest(f"bind source path does not exist: {source[:200]}")
    return _host_path(source, destination, writable=writable, mode="", spec=options)


def _named_volume(mount: Mapping[str, Any], source: str, destination: str, *, writable: bool) -> Point:
    options = mount.get("VolumeOptions") or {}
    subpath = options.get("Subpath") or ""
    if subpath and not source:
        raise BadRequest("must not set Subpath when using anonymous volumes")
    if subpath and (subpath.startswith("/") or ".." in subpath.split("/")):
        raise BadRequest("subpath must be a relative path within the volume")
    driver = options.get("DriverConfig") or {}
    found = _volume(
        source, destination, driver.get("Name") or "", writable=writable, mode="z",
        no_copy=options.get("NoCopy", False),
    )  # fmt: skip
    found["Spec"] |= {
        "Subpath": subpath, "Labels": options.get("Labels") or {}, "DriverOpts": driver.get("Options") or {},
    }  # fmt: skip
    return found


def _volume(
    name: str, destination: str, driver: str, *, writable: bool, mode: str, no_copy: bool = False
) -> Point:
    if driver not in ("", "local"):
        raise BadRequest(f'error looking up volume plugin {driver[:80]}: plugin "{driver[:80]}" not found')
    if name and not _VOLUME.fullmatch(name):
        raise BadRequest(
            f'"{name[:80]}" includes invalid characters for a local volume name, '
            'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )
    spec = {"Anonymous": not name, "NoCopy": no_copy, "Subpath": "", "Labels": {}, "DriverOpts": {}}
    found = _described("volume", "", destination, writable=writable, spec=spec, mode=mode)
    return found | {"Name": name or secrets.token_hex(32), "Driver": "local", "Propagation": ""}


def _host_path(source: str, destination: str, *, writable: bool, mode: str, spec: Mapping[str, Any]) -> Point:
    kept = {name: value for name, value in spec.items() if name != "Propagation"}
    found = _described("bind", os.path.normpath(source), destination, writable=writable, spec=kept, mode=mode)
    return found | {"Propagation": spec.get("Propagation") or "rprivate"}


def _described(
    kind: str, source: str, destination: str, *, writable: bool, spec: Mapping[str, Any], mode: str = ""
) -> Point:
    return {
        "Type": kind,
        "Source": source,
        "Destination": destination,
        "Mode": mode,
        "RW": writable,
        "Propagation": "",
        "Spec": dict(spec),
    }


def bind(source: str, destination: str, *, writable: bool = True) -> Point:
    """Return the mount point of a file or directory of ours, such as the container's /etc/hosts."""
    return _host_path(source, destination, writable=writable, mode="", spec={"ReadOnlyNonRecursive": True})
