"""Options of which each has a small language of its own: -v, --mount, -p, --device, --ulimit and the like."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from layerfs.cli.quantities import size
from layerfs.cli.shared import parsed_pairs
from layerfs.errors import UsageError

_PORTS = 65536
_FLAGS = {
    "readonly": ("", "ReadOnly"),
    "ro": ("", "ReadOnly"),
    "volume-nocopy": ("VolumeOptions", "NoCopy"),
    "bind-nonrecursive": ("BindOptions", "NonRecursive"),
    "bind-create-src": ("BindOptions", "CreateMountpoint"),
}
_TEXTS = {
    "type": ("", "Type"),
    "source": ("", "Source"),
    "src": ("", "Source"),
    "target": ("", "Target"),
    "dst": ("", "Target"),
    "destination": ("", "Target"),
    "consistency": ("", "Consistency"),
    "bind-propagation": ("BindOptions", "Propagation"),
    "volume-subpath": ("VolumeOptions", "Subpath"),
    "image-subpath": ("ImageOptions", "Subpath"),
}


def host(text: str) -> str:
    """Return `NAME:ADDRESS` of what may be written `NAME=ADDRESS` too."""
    name, separator, address = re.fullmatch(r"([^=:]*)([=:]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if not separator or not name:
        raise UsageError(f"bad format for add-host: {text!r}: give NAME:ADDRESS")
    return f"{name}:{address.removeprefix('[').removesuffix(']')}"


def volumes(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the destinations of volumes without a name, and others as `SOURCE:DESTINATION[:MODE]`."""
    without, binds = [], []
    for text in texts:
        source, colon, rest = text.partition(":")
        if not colon:
            if not text.startswith("/"):
                raise UsageError(f"invalid volume {text!r}: give HOST:DEST, VOLUME:DEST or an absolute DEST")
            without.append(text)
        else:
            if not source or not rest:
                raise UsageError(f"invalid volume {text!r}: give HOST:DEST, HOST:DEST:ro or HOST:DEST:rw")
            binds.append(f"{path(source)}:{rest}")
    return without, binds


def path(text: str) -> str:
    """Return *text* as an absolute path if it is a relative one; a name of a volume stays."""
    return os.path.abspath(text) if text in (".", "..") or text.startswith(("./", "../")) else text


def mount(text: str) -> dict[str, Any]:
    """Return the member of `Mounts` that an option --mount asks for; raises `UsageError`."""
    found: dict[str, Any] = {"Type": "volume"}
    try:
        fields = next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration):
        raise UsageError(
            f"invalid mount {text!r}: give fields such as type=bind,source=/a,target=/b"
        ) from None
    for field in fields:
        key, equals, value = field.partition("=")
        key = key.strip().lower()
        if key in _FLAGS:
            _put(found, _FLAGS[key], _flag(key, value) if equals else True)
        elif not equals:
            raise UsageError(f"invalid field {field!r} must be a key=value pair: --mount {text!r}")
        else:
            _take(found, key, value)
    if not found.get("Target"):
        raise UsageError(f"target is required: --mount {text!r}")
    if found["Type"] == "bind":
        found["Source"] = path(found.get("Source", ""))
    for kind, member in (("volume", "VolumeOptions"), ("bind", "BindOptions"), ("tmpfs", "TmpfsOptions")):
        if member in found and found["Type"] != kind:
            raise UsageError(f"cannot mix '{kind}-*' options with mount type '{found['Type']}'")
    return found


def _take(found: dict[str, Any], key: str, value: str) -> None:
    """Put the field *key* of an option --mount into *found*."""
    if key in _TEXTS:
        _put(found, _TEXTS[key], value.lower() if key == "type" else value)
    elif key == "bind-recursive":
        words: dict[str, dict[str, bool]] = {
            "enabled": {},
            "disabled": {"NonRecursive": True},
            "writable": {"ReadOnlyNonRecursive": True},
            "readonly": {"ReadOnlyForceRecursive": True},
        }
        if value not in words:
            raise UsageError(f"invalid value for bind-recursive: {value!r}: use {', '.join(words)}")
        found.setdefault("BindOptions", {}).update(words[value])
    elif key == "volume-driver":
        _driver(found)["Name"] = value
    elif key == "volume-opt":
        _driver(found).setdefault("Options", {}).update(parsed_pairs([value], "invalid volume-opt"))
    elif key == "volume-label":
        found.setdefault("VolumeOptions", {}).setdefault("Labels", {}).update(
            parsed_pairs([value], "invalid volume-label")
        )
    elif key == "tmpfs-size":
        _put(found, ("TmpfsOptions", "SizeBytes"), size(value, "tmpfs-size"))
    elif key == "tmpfs-mode":
        if not re.fullmatch(r"[0-7]{1,6}", value, re.ASCII):
            raise UsageError(f"invalid value for tmpfs-mode: {value!r}: give an octal number")
        _put(found, ("TmpfsOptions", "Mode"), int(value, 8))
    else:
        raise UsageError(f"unexpected key {key!r} in --mount")


def _driver(found: dict[str, Any]) -> dict[str, Any]:
    driver: dict[str, Any] = found.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {})
    return driver


def _put(found: dict[str, Any], where: tuple[str, str], value: Any) -> None:
    (found.setdefault(where[0], {}) if where[0] else found)[where[1]] = value


def _flag(key: str, value: str) -> bool:
    if value.lower() in ("1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise UsageError(f"invalid value for {key}: {value!r}: give true or false")


def published(texts: Iterable[str]) -> tuple[set[str], dict[str, list[dict[str, str]]]]:
    """Return the ports of the container, and what leads to them; raises `UsageError`."""
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        if "=" in text:
            text = _long_port(text)
        address, outside, inside, protocol = _port(text)
        first, last = _range(inside, text)
        if not outside:
            ports = [""] * (last - first + 1)
        else:
            low, high = _range(outside, text)
            if high - low == last - first:
                ports = [str(port) for port in range(low, high + 1)]
            elif first == last:
                ports = [outside]  # one of these
            else:
                raise UsageError(
                    f"invalid ranges specified for container and host ports: {inside} and {outside}"
                )
        for number, port in enumerate(ports):
            bindings.setdefault(f"{first + number}/{protocol}", []).append(
                {"HostIp": address, "HostPort": port}
            )
    return set(bindings), bindings


def _port(text: str) -> tuple[str, str, str, str]:
    """Return the address, the ports outside and inside, and the protocol in `[[IP:]PORT:]PORT[/udp]`."""
    rest, _, protocol = text.partition("/")
    found = re.fullmatch(r"(?:(?:(?:\[([^\]]*)\]|([^\[\]]*?)):)?([\d-]*):)?([\d-]+)", rest, re.ASCII)
    if not found:
        raise UsageError(f"invalid port {text!r}: give [[IP:]PORT:]PORT[/udp]")
    protocol = protocol.lower() or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise UsageError(f"invalid port {text!r}: the protocol is tcp, udp or sctp")
    address = found[1] or found[2] or ""
    try:
        ip_address(address or "0.0.0.0")
    except ValueError:
        raise UsageError(f"invalid IP address {address!r} in the port {text!r}") from None
    return address, found[3] or "", found[4], protocol


def _long_port(text: str) -> str:
    """Return `target=80,published=8080,protocol=udp` in the short form."""
    found = parsed_pairs(text.split(","), "invalid port")
    if unknown := found.keys() - {"target", "published", "protocol", "mode", "app_protocol", "name"}:
        raise UsageError(f"invalid field {min(unknown)!r} in --publish {text!r}")
    outside = f"{found['published']}:" if "published" in found else ""
    return f"{outside}{found.get('target', '')}/{found.get('protocol', 'tcp')}"


def exposed(texts: Iterable[str]) -> set[str]:
    """Return the ports that options --expose name; raises `UsageError`."""
    found = set()
    for text in texts:
        ports, _, protocol = text.partition("/")
        first, last = _range(ports, text)
        if (protocol := protocol.lower() or "tcp") not in ("tcp", "udp", "sctp"):
            raise UsageError(f"invalid port {text!r}: the protocol is tcp, udp or sctp")
        found |= {f"{port}/{protocol}" for port in range(first, last + 1)}
    return found


def _range(text: str, whole: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last < _PORTS:
        raise UsageError(f"invalid range of ports {text!r} in {whole!r}")
    return first, last


def device(text: str) -> dict[str, str]:
    """Return the device that `PATH[:PATH_INSIDE][:rwm]` means; raises `UsageError`."""
    parts = text.split(":")
    inside, permissions = "", "rwm"
    if len(parts) == 2 and re.fullmatch("[rwm]{1,3}", parts[1]):
        permissions = parts[1]
    elif len(parts) in (2, 3):
        inside = parts[1]
        permissions = parts[2] if len(parts) == 3 else permissions
    if len(parts) > 3 or not parts[0]:
        raise UsageError(f"invalid device specification: {text}")
    return {"PathOnHost": parts[0], "PathInContainer": inside or parts[0], "CgroupPermissions": permissions}


def ulimit(text: str) -> dict[str, Any]:
    """Return the limit that `NAME=SOFT[:HARD]` means; raises `UsageError`."""
    found = re.fullmatch(r"([a-z]+)=(-?\d{1,18})(?::(-?\d{1,18}))?", text, re.ASCII)
    if not found:
        raise UsageError(f"invalid ulimit argument: {text}: give NAME=SOFT or NAME=SOFT:HARD")
    return {"Name": found[1], "Soft": int(found[2]), "Hard": int(found[3] or found[2])}


def gpus(text: str) -> dict[str, Any]:
    """Return the request for devices that an option --gpus means; raises `UsageError`."""
    if text == "all" or re.fullmatch(r"\d{1,4}", text, re.ASCII):
        return {"Count": -1 if text == "all" else int(text), "Capabilities": [["gpu"]]}
    found: dict[str, Any] = {"Count": 0, "Capabilities": [["gpu"]]}
    for key, _, value in (field.partition("=") for field in next(csv.reader([text]))):
        if key == "device":
            found["DeviceIDs"] = value.split(",")
        elif key == "count" and (value == "all" or value.isdecimal()):
            found["Count"] = -1 if value == "all" else int(value)
        elif key == "capabilities":
            found["Capabilities"] = [["gpu", *value.split(",")]]
        elif key == "driver":
            found["Driver"] = value
        else:
            raise UsageError(f"invalid --gpus {text!r}: give all, a number, or device=ID")
    return found


def rate(text: str, option: str, *, in_bytes: bool) -> dict[str, Any]:
    """Return the limit that `DEVICE:RATE` means; raises `UsageError`."""
    name, _, amount = text.rpartition(":")
    if not name.startswith("/dev/") or not amount or (not in_bytes and not amount.isdecimal()):
        raise UsageError(f"invalid --{option.replace('_', '-')} {text!r}: give /dev/NAME:RATE")
    return {"Path": name, "Rate": size(amount, f"--{option.replace('_', '-')}")}


def weight(text: str) -> dict[str, Any]:
    """Return the weight that `DEVICE:WEIGHT` means; raises `UsageError`."""
    name, _, amount = text.rpartition(":")
    if not name.startswith("/dev/") or not re.fullmatch(r"\d{1,5}", amount, re.ASCII):
        raise UsageError(f"invalid --blkio-weight-device {text!r}: give /dev/NAME:WEIGHT")
    return {"Path": name, "Weight": int(amount)}
