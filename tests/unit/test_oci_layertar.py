"""A layer's tree becomes a tar archive of its changes."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from layerfs.archive.layertar import LayerTar, content
from layerfs.errors import LayerfsError
from tests.unit.union_support import plain_stack

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")


def tar_of(*trees: Path) -> dict[str, tarfile.TarInfo]:
    """Return the members of the archive of the last of these trees, which lie on each other."""
    data = b"".join(LayerTar(plain_stack(*trees)).pieces())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert len(names) == len(set(names)), names
    return dict(zip(names, members, strict=True))


@needs_root
def test_what_a_layer_says_of_those_below(tmp_path: Path) -> None:
    below, above = tmp_path / "below", tmp_path / "above"
    for path in ("old/in", "hidden", "kept"):
        (below / path).mkdir(parents=True)
    for path in ("old/a", "old/in/b", "old/in/gone", "hidden/x", "kept/y", "meta"):
        (below / path).write_text(path)
    os.link(below / "old/a", below / "old/in/link")
    (above / "new/in").mkdir(parents=True)
    os.setxattr(above / "new", "trusted.overlay.redirect", b"/old")
    os.mknod(above / "old", stat.S_IFCHR, 0)
    os.mknod(above / "new/in/gone", stat.S_IFCHR, 0)
    (above / "new/c").write_text("c")
    (above / "hidden").mkdir()
    os.setxattr(above / "hidden", "trusted.overlay.opaque", b"y")
    (above / "kept").mkdir()
    os.mknod(above / "kept/y", stat.S_IFCHR, 0)
    (above / "meta").touch(0o600)
    os.truncate(above / "meta", 4)
    os.setxattr(above / "meta", "trusted.overlay.metacopy", b"")
    os.setxattr(above / "kept", "trusted.overlay.overlay.x", b"1")
    members = tar_of(below, above)
    assert list(members) == [
        ".",
        "meta",
        ".wh.old",
        "hidden",
        "hidden/.wh..wh..opq",
        "kept",
        "kept/.wh.y",
        "new",
        "new/.wh..wh..opq",
        "new/a",
        "new/c",
        "new/in",
        "new/in/b",
        "new/in/link",
    ]
    assert (members["new/in/link"].type, members["new/in/link"].linkname) == (tarfile.LNKTYPE, "new/a")
    assert members["kept"].pax_headers["SCHILY.xattr.trusted.overlay.x"] == "1"
    data = b"".join(LayerTar(plain_stack(below, above)).pieces())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        contents = {name: tar.extractfile(name).read() for name in ("meta", "new/a", "new/in/b")}  # type: ignore[union-attr]
    assert contents == {"meta": b"meta", "new/a": b"old/a", "new/in/b": b"old/in/b"}


def test_deep_trees(tmp_path: Path) -> None:
    try:
        fd = os.open(tmp_path, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
        assert len(tar_of(tmp_path)) == 1501
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # deeper than what pytest can remove


def test_names_that_no_image_can_hold(tmp_path: Path) -> None:
    (tmp_path / ".wh.x").touch()
    with pytest.raises(LayerfsError, match=r"'\.wh\.x' cannot be in an image"):
        tar_of(tmp_path)


@pytest.mark.parametrize("there", [0, 100, 5000])
def test_a_file_that_became_shorter_is_an_error_and_no_hole(tmp_path: Path, there: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * there)
    with (tmp_path / "file").open("rb") as file:
        with pytest.raises(LayerfsError, match="became shorter"):
            list(content(file.fileno(), b"file", 1 << 20))
        filled = b"".join(content(file.fileno(), b"file", 1 << 20, fill=True))
    assert filled == (b"x" * there).ljust(1 << 20, b"\0")
