"""What the layers below the upper call something: the paths that redirects have."""

from __future__ import annotations

import os
from contextlib import suppress

from layerfs.union.marking import REDIRECT
from layerfs.union.node import Directory, File
from layerfs.union.upper import Upper
from layerfs.union.view import Union


def lower_path(union: Union, node: Directory) -> bytes:
    """Return the absolute path under which the layers below the upper know *node*."""
    parts: list[bytes] = []
    for directory in node.ancestors():
        part = directory.dirs[0]
        redirect = part.redirect if part.layer is union.upper else None
        if redirect is not None and redirect.startswith(b"/"):
            parts.append(redirect[1:])
            break
        parts.append(redirect or directory.name)
    else:
        parts.pop()  # the root's empty name
    return b"/" + b"/".join(reversed(parts))


def file_path(union: Union, node: File, noted: bytes | None = None) -> bytes:
    """Return the absolute path under which they know the lower file *node*, or *noted* in its directory."""
    parent, name = node.names[0]
    return lower_path(union, parent).rstrip(b"/") + b"/" + (noted or name)


def mark_contents(union: Union, upper: Upper, node: File) -> None:
    """Note on disk where the contents are of a file that has only metadata in the upper: its name changes.

    What is noted already holds if it is a path; a name alone would hold in its own directory only.
    """
    target, follow = node.path()
    noted = None
    with suppress(OSError):
        noted = os.getxattr(target, upper.marking.prefix + REDIRECT, follow_symlinks=follow)
    if noted is None or not noted.startswith(b"/"):
        path = file_path(union, node, noted)
        os.setxattr(target, upper.marking.prefix + REDIRECT, path, follow_symlinks=follow)
