"""The configuration file of a mount, which its systemd service reads: `/etc/layerfs/NAME.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from layerfs.cli.options import MountOptions, parse_options
from layerfs.errors import NotFound, UsageError, from_os_error

TEXTS = ("image", "upper", "work", "name", "mountpoint", "options", "root")
KEYS = (*TEXTS, "lower", "read_only")


def apply_config(
    path: Path, wanted: MountOptions, mountpoint: str | None, root: Path
) -> tuple[str | None, Path]:
    """Fill what *wanted* leaves open from the file *path*.

    Returns *mountpoint*, or else the file's, and the file's store, or else the one at *root*.

    A file describes a mount for good: once the store at *root* has a mount of the name, that one is
    resumed, and what the file says of image, directories and options has had its effect.
    Raises `UsageError` for a file that cannot be read as one.
    """
    values = read_config(path)
    mountpoint = _given(mountpoint, values.get("mountpoint"))
    wanted.name = _given(wanted.name, values.get("name"))
    root = Path(values.get("root", root))
    if wanted.image is None and not wanted.lowers:
        if wanted.name is not None and _exists(root, wanted.name):
            return mountpoint, root
        wanted.image = values.get("image")
        wanted.lowers = tuple(values.get("lower", ()))
        wanted.upper = _given(wanted.upper, values.get("upper"))
        wanted.work = _given(wanted.work, values.get("work"))
    from_options = parse_options([values.get("options", "")])
    wanted.switches = from_options.switches | wanted.switches
    wanted.read_only = wanted.read_only or from_options.read_only or values.get("read_only", False)
    return mountpoint, root


def _given(first: str | None, second: str | None) -> str | None:
    return first if first is not None else second


def read_config(path: Path) -> dict[str, Any]:
    """Return the values of the configuration file *path*; raise `UsageError` when it makes no sense."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise from_os_error(error, "read the configuration") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    for name, value in values.items():
        if name not in KEYS:
            raise UsageError(f"{path}: unknown key {name!r}: use {', '.join(KEYS)}")
        if name in TEXTS and not isinstance(value, str):
            raise UsageError(f"{path}: {name} must be a text")
        if value == "" and name != "options":
            raise UsageError(f"{path}: {name} is empty: give one, or leave the line out")
        if name == "options":
            parse_options([value])
        if name == "read_only" and not isinstance(value, bool):
            raise UsageError(f"{path}: read_only must be true or false")
        if name == "lower" and not (
            isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        ):
            raise UsageError(f"{path}: lower must be a list of directories, the topmost first")
    return values


def _exists(root: Path, name: str) -> bool:
    from layerfs.store import Store

    try:
        with Store(root, create=False) as store:
            return any(mount.name == name for mount in store.mounts())
    except NotFound:
        return False
