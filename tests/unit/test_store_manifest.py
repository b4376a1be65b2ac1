"""Settling and verifying."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from layerfs.errors import Conflict, NotFound
from layerfs.store import Store, manifest, settle
from layerfs.store.model import Image, Mount
from tests.conftest import errno_of

XXH3_OF_NOTHING = "99aa06d3014798d86001c324468d497f"


def committed(store: Store, mount: Mount) -> str:
    """Commit a file to the mount and return the layer."""
    assert mount.upper is not None
    (store.layer(mount.upper).path / "file").write_text("content")
    store.commit(mount, store.prepare_upper(mount), reference="x")
    return mount.upper


def differences(store: Store, reference: str = "debian:12") -> list[tuple[bytes, str]]:
    return [(difference.path, difference.what) for difference in store.verify(reference)]


def test_the_format(tree: Path, tmp_path: Path) -> None:
    (tree / "empty").touch()
    os.utime(tree, ns=(0, 1_400_000_000_000_000_001))
    manifest.write(tree, tmp_path / "manifest")
    owner = f"{os.geteuid()} {os.getegid()}"
    content = (tree / "etc/passwd").read_bytes()
    lines = (tmp_path / "manifest").read_text("ascii").splitlines()
    assert lines[0] == "layerfs-manifest 1"
    assert lines[1] == f"d 0751 {owner} 1400000000000000001 - - ."
    passwd = [line for line in lines if " etc/passwd" in line]
    assert passwd == [
        f"f 0644 {owner} 1600000000123456789 26 {xxhash.xxh3_128_hexdigest(content)}"
        " etc/passwd user.note=00ff0a3d"
    ]
    assert [line.split()[6] for line in lines if line.endswith(" lib")] == ["usr/lib"]
    assert any(line.endswith(r" odd\x20\xff\x0a\x3d\x5c\x20name") for line in lines)
    assert [line.split()[6] for line in lines if line.endswith(" empty")] == [XXH3_OF_NOTHING]
    assert lines[-1].startswith("end 11 ")
    assert list(manifest.read(tmp_path / "manifest")) == list(manifest.records(tree))
    assert sorted(os.listdir(tmp_path)) == ["manifest", "tree"]


@pytest.mark.root
def test_a_file_that_cannot_be_read_to_its_end_has_no_digest(tree: Path, tmp_path: Path) -> None:
    """Files of /sys say 4096 bytes and have fewer: a medium that ends early looks like that."""
    short = tree / "short"
    short.touch()
    subprocess.run(["mount", "--bind", "/sys/kernel/uevent_seqnum", short], check=True)
    try:
        assert errno_of(lambda: manifest.write(tree, tmp_path / "manifest")) == errno.EIO
    finally:
        subprocess.run(["umount", short], check=True)
    assert not (tmp_path / "manifest").exists()


def test_settling_a_commit(store: Store, mount: Mount) -> None:
    layer_id = committed(store, mount)
    before = store.layer(layer_id)
    assert (before.size, before.manifest_done) == (None, False)
    assert (before.path.parent / "work").is_dir()
    store.settle_layer(layer_id)
    after = store.layer(layer_id)
    assert (after.size, after.manifest_done) == (7, True)
    assert sorted(os.listdir(after.path.parent)) == ["fs", "manifest"]
    stamp = (after.path.parent / "manifest").stat().st_mtime_ns
    store.settle_layer(layer_id)
    assert (after.path.parent / "manifest").stat().st_mtime_ns == stamp


def test_an_upper_is_not_settled(store: Store, mount: Mount) -> None:
    assert mount.upper is not None
    with pytest.raises(Conflict, match="being written to"):
        store.settle_layer(mount.upper)
    with pytest.raises(NotFound):
        store.settle_layer("0" * 64)
    assert store.layer_size(mount.upper) == 0
    (store.layer(mount.upper).path / "x").write_bytes(b"123")
    assert store.layer_size(mount.upper) == 3


def test_settling_in_a_process_of_its_own(store: Store, mount: Mount) -> None:
    layer_id = committed(store, mount)
    with settle.start(store.root, layer_id) as first, settle.start(store.root, layer_id) as second:
        assert store.layer_size(layer_id) == 7
        assert (first.wait(30), second.wait(30)) == (0, 0)
    assert store.layer(layer_id).manifest_done
    with settle.start(store.root, "0" * 64) as gone:
        assert gone.wait(30) == 0
    wrong = subprocess.run(
        [sys.executable, "-m", "layerfs.store.settle"], capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "usage: python -m layerfs.store.settle ROOT LAYERS [WATCH]\n",
    )


def test_an_unchanged_image(store: Store, base: Image, mount: Mount) -> None:
    committed(store, mount)
    assert differences(store) == differences(store, "x") == []
    with pytest.raises(NotFound):
        differences(store, "nothing")


def replace_content(tree: Path) -> None:
    status = (tree / "etc/passwd").stat()
    (tree / "etc/passwd").write_bytes(b"X" * status.st_size)
    os.utime(tree / "etc/passwd", ns=(0, status.st_mtime_ns))


def replace_link(tree: Path) -> None:
    times = (tree / "lib").lstat().st_mtime_ns
    (tree / "lib").unlink()
    (tree / "lib").symlink_to("elsewhere")
    os.utime(tree / "lib", ns=(0, times), follow_symlinks=False)


def replace_type(tree: Path) -> None:
    (tree / "pipe").unlink()
    (tree / "pipe").mkdir()


def remove_directory(tree: Path) -> None:
    (tree / "bin/sh").unlink()
    (tree / "bin/ash").unlink()
    (tree / "bin").rmdir()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (replace_content, [(b"etc/passwd", "content differs")]),
        (lambda tree: (tree / "bin/ash").chmod(0o700), [
            (b"bin/ash", "mode is 0700, not 4755"),
            (b"bin/sh", "mode is 0700, not 4755"),
        ]),
        (lambda tree: os.utime(tree / "sparse", ns=(0, 1)), [(b"sparse", "mtime is 1, not MTIME")]),
        (lambda tree: os.setxattr(tree / "etc", "user.a", b""), [(b"etc", "extended attributes differ")]),
        (replace_link, [(b"lib", "target is elsewhere, not usr/lib")]),
        (replace_type, [(b"pipe", "type is d, not p")]),
        (remove_directory, [(b"bin", "is missing"), (b"bin/ash", "is missing"), (b"bin/sh", "is missing")]),
        (lambda tree: (tree / "etc/new").write_text("x"), [(b"etc/new", "is not in the manifest")]),
        (lambda tree: (tree / "zzz").write_text("x"), [(b"zzz", "is not in the manifest")]),
        (lambda tree: (tree / os.fsdecode(b"odd \xff\n=\\ name")).unlink(), [
            (b"odd \xff\n=\\ name", "is missing")
        ]),
    ],
)  # fmt: skip
def test_every_difference_is_named(
    store: Store, base: Image, damage: Callable[[Path], object], found: list[tuple[bytes, str]]
) -> None:
    tree = store.layer(base.layers[0]).path
    mtimes = {path: path.lstat().st_mtime_ns for path in [tree, *tree.iterdir()]}
    damage(tree)
    for directory in (tree, tree / "etc"):
        os.utime(directory, ns=(0, mtimes[directory]))
    found = [(path, what.replace("MTIME", str(mtimes[tree / "sparse"]))) for path, what in found]
    assert differences(store) == found


@pytest.mark.parametrize("damage", [b"", b"layerfs-manifest 9\n", b"layerfs-manifest 1\nend 0 x\n"])
def test_a_damaged_manifest_is_named(store: Store, base: Image, damage: bytes) -> None:
    file = store.layer(base.layers[0]).path.parent / "manifest"
    whole = file.read_bytes()
    for text in (damage, whole[:-50], whole.replace(b"passwd", b"passwe"), whole[:200] + b"\n" + whole[200:]):
        file.write_bytes(text)
        assert differences(store)[-1][0] == b""
    file.unlink()
    assert differences(store) == [(b"", f"{file} is missing")]
