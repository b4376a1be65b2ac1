"""Tar archives of what a test says."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any


def archive(*members: tuple[dict[str, Any], bytes]) -> bytes:
    """Return a tar archive of *members*: fields of a header (`name`, `type`, ...) and content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for fields, content in members:
            info = tarfile.TarInfo(fields["name"])
            for name, value in fields.items():
                setattr(info, name, value)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def file(name: str, content: bytes = b"x", **fields: Any) -> tuple[dict[str, Any], bytes]:
    """Return a member that is a file."""
    return {"name": name, "mode": 0o644, **fields}, content


def directory(name: str, mode: int = 0o755, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """Return a member that is a directory."""
    return {"name": name, "type": tarfile.DIRTYPE, "mode": mode, **fields}, b""


def link(name: str, target: str, *, hard: bool = False) -> tuple[dict[str, Any], bytes]:
    """Return a member that is a link."""
    return {"name": name, "type": tarfile.LNKTYPE if hard else tarfile.SYMTYPE, "linkname": target}, b""


def compressed(data: bytes, program: str) -> bytes:
    """Return *data* as *program* (gzip, bzip2, xz, zstd) compresses it."""
    return subprocess.run([program, "-c"], input=data, capture_output=True, check=True, timeout=60).stdout


def of_tree(tree: Path) -> bytes:
    """Return *tree* as `docker build` would send it."""
    words = ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "-S", "-cf", "-", "-C", str(tree), "."]
    return subprocess.run(words, capture_output=True, check=True, timeout=60).stdout
