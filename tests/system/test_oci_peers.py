"""Images go to umoci, skopeo and buildah and come from them, and everybody sees the same tree."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Layerfs
from tests.fuse.oracle import snapshot
from tests.fuse.oracle.snapshot import Snapshot
from tests.system.oci_support import (
    NEVER,
    Images,
    another,
    assert_same,
    change_more,
    change_much,
    make_everything,
    tool,
    view,
)

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def images(shared_layerfs: Layerfs) -> Images:
    """A store with an image of three layers."""
    return Images(shared_layerfs)


class Buildah:
    """buildah with a storage of its own."""

    def __init__(self, directory: Path) -> None:
        self._words = (
            "buildah",
            *("--storage-driver", "vfs"),
            *("--root", str(directory / "buildah")),
            *("--runroot", str(directory / "buildah-run")),
        )

    def __call__(self, *words: str | os.PathLike[str]) -> str:
        """Run a command of buildah's."""
        return tool(*self._words, *words).strip()

    def tree(self, image: str) -> Snapshot:
        """Return what a container of *image* looks like."""
        container = self("from", image)
        try:
            return taken(Path(self("mount", container)))
        finally:
            self("rm", container)


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[Buildah]:
    """Buildah, of which nothing stays mounted."""
    command = Buildah(tmp_path)
    try:
        yield command
    finally:
        command("rm", "--all")


def taken(path: Path) -> Snapshot:
    """Return what is below *path*, every attribute included."""
    return snapshot.take(os.fsencode(path), NEVER, kernel=False)


def as_in_go(tree: Snapshot, *, prefixes: tuple[str, ...] = ("",)) -> Snapshot:
    """Return *tree* with those attributes alone that tools written in Go keep: no empty and no odd ones."""
    return {
        path: item._replace(
            attributes=tuple(
                (name, value)
                for name, value in item.attributes
                if value and not set("=%") & set(name) and name.startswith(prefixes)
            )
        )
        for path, item in tree.items()
    }


def below_root(tree: Snapshot) -> Snapshot:
    """Return *tree* without its root, which is buildah's own."""
    return {path: item for path, item in tree.items() if path}


def test_umoci_unpacks_the_same_tree(images: Images, tmp_path: Path) -> None:
    images.layerfs.ok("save", "all:2", "-o", tmp_path / "layout", "--format", "oci-dir")
    tool("umoci", "unpack", "--image", f"{tmp_path}/layout:2", tmp_path / "bundle")
    assert_same(as_in_go(images.expected), as_in_go(taken(tmp_path / "bundle/rootfs")))


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_buildah_mounts_the_same_tree(images: Images, tmp_path: Path, buildah: Buildah, form: str) -> None:
    images.layerfs.ok("save", "all:2", "-o", tmp_path / "x.tar", "--format", form)
    kept = ("user.", "security.")
    theirs = buildah.tree(f"{form}:{tmp_path}/x.tar")
    assert_same(
        below_root(as_in_go(images.expected, prefixes=kept)),
        below_root(as_in_go(theirs, prefixes=kept)),
    )


@pytest.mark.parametrize(
    ("form", "compression", "copy"),
    [
        ("docker-archive", "none", "oci"),
        ("docker-archive", "gzip", "docker-archive"),
        ("oci-archive", "gzip", "docker-archive"),
        ("oci-dir", "zstd", "oci"),
    ],
)
def test_skopeo_copies_what_we_save(
    images: Images, tmp_path: Path, form: str, compression: str, copy: str
) -> None:
    saved = tmp_path / "saved"
    images.layerfs.ok("save", "all:2", "-o", saved, "--format", form, "--compression", compression)
    source = f"{form.replace('oci-dir', 'oci')}:{saved}"
    about = json.loads(tool("skopeo", "inspect", source))
    assert (about["Os"], len(about["Layers"]), about["Labels"]) == ("linux", 3, {"x": "y"})
    tool("skopeo", "copy", source, f"{copy}:{tmp_path}/copy:again:1")
    other = another(images.layerfs, tmp_path.name)
    assert other.ok("load", tmp_path / "copy", "-t", "copied").splitlines() == ["Loaded image: copied:latest"]
    if (form, compression) == ("oci-dir", "zstd"):
        assert_same(images.expected, view(other, "copied", "copied"))


def test_an_image_of_umoci(layerfs: Layerfs, tmp_path: Path) -> None:
    layout = tmp_path / "layout"

    def repack() -> None:
        tool("umoci", "repack", "--image", f"{layout}:made", tmp_path / "bundle")
        shutil.rmtree(tmp_path / "bundle")
        tool("umoci", "unpack", "--image", f"{layout}:made", tmp_path / "bundle")

    tool("umoci", "init", "--layout", layout)
    tool("umoci", "new", "--image", f"{layout}:made")
    tool("umoci", "unpack", "--image", f"{layout}:made", tmp_path / "bundle")
    rootfs = tmp_path / "bundle/rootfs"
    make_everything(rootfs, odd=False)
    repack()
    change_much(rootfs)
    (rootfs / "socket").unlink()
    repack()
    layerfs.ok("load", layout)
    ours = view(layerfs, "made", "view")
    assert_same(as_in_go(taken(rootfs)), as_in_go(ours))
    assert ours[b"emptied/new"].content == b"new"
    assert b"emptied/one" not in ours


def test_an_image_of_buildah(layerfs: Layerfs, tmp_path: Path, buildah: Buildah) -> None:
    container = buildah("from", "scratch")
    make_everything(Path(buildah("mount", container)), odd=False)
    buildah("config", "--cmd", "sh -l", "--env", "A=b", "--label", "x=y", container)
    buildah("commit", container, "one")
    buildah("rm", container)
    container = buildah("from", "one")
    mnt = Path(buildah("mount", container))
    change_much(mnt)
    change_more(mnt)
    (mnt / "socket").unlink()
    buildah("commit", container, f"oci-archive:{tmp_path}/made.tar:made:1")
    buildah("rm", container)
    theirs = buildah.tree(f"oci-archive:{tmp_path}/made.tar")
    assert layerfs.ok("load", tmp_path / "made.tar") == "Loaded image: made:1"
    assert_same(below_root(theirs), below_root(view(layerfs, "made:1", "view")))
    config = json.loads(layerfs.ok("inspect", "made:1"))[0]["Config"]
    assert (config["Cmd"], config["Labels"]["x"]) == (["sh", "-l"], "y")
    assert "A=b" in config["Env"]
