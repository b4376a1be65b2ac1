"""Names of mounts on the command line: a mount's name or id, or the directory that it is mounted on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerfs.errors import NotFound

if TYPE_CHECKING:
    from layerfs.client.client import Client


class MountName(click.ParamType):  # type: ignore[type-arg]
    """A name or an id, as it is, or a mountpoint, which becomes the id of the mount on it."""

    name = "name"

    def __init__(self, *, image: bool = False) -> None:
        """With *image*, what is no mountpoint may be the name of an image, too."""
        self._image = image

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name or id of the mount that *value* means; raises `NotFound`."""
        text = str(value)
        if text == "":
            self.fail("it is empty: give one, or leave it out", param, ctx)
        if ctx is None or not isinstance(ctx.obj, Path) or not may_be_path(text):
            return text
        from layerfs.client.client import Client

        found = mounted_on(Client.of(ctx.obj), text)
        if found is not None:
            return found
        leads_nowhere = text.startswith(("./", "../")) or text in (".", "..") or text.endswith("/")
        if "/" not in text.removeprefix("/") and not leads_nowhere:
            return text  # docker shows names as "/NAME"
        if self._image and not leads_nowhere and not text.startswith("/"):
            return text
        raise NotFound(f"no mount of this store is mounted on {text}")


NAME = MountName()
ANY_NAME = MountName(image=True)


def may_be_path(text: str) -> bool:
    """Return whether *text* may be a mountpoint: it is a path, or something is mounted on it right here."""
    return "/" in text or text in (".", "..") or _is_mounted_here(text)


def _is_mounted_here(name: str) -> bool:
    """Return whether something is mounted on the directory *name* in this one, which is not looked at."""
    try:
        path = os.fsencode(os.path.join(os.getcwd(), name))
        for character in (b"\\", b" ", b"\t", b"\n"):
            path = path.replace(character, b"\\%03o" % ord(character))
        return b" %s " % path in Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return False


def mounted_on(client: Client, path: str) -> str | None:
    """Return the id of the mount on the directory *path*, None when there is none.

    A mount of that name comes first. The directory itself is not looked at: its daemon may be dead, or hang.
    """
    from layerfs.host.mounttable import resolve

    directory = resolve(path).encode(errors="replace").decode()  # as in JSON
    found = None
    for item in client.request("GET", "/containers/json", all=True):
        if path in (item["Id"], *(known.removeprefix("/") for known in item["Names"])):
            return path
        if item["Mountpoint"] == directory and item["State"] in ("running", "dead"):
            found = item["Id"]
    return found
