"""Layers that attack: what is refused, what is harmless, and what an ordinary user gets."""

from __future__ import annotations

import json
import os
import stat
import tarfile
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from layerfs import oci
from layerfs.archive.limits import Limits
from layerfs.store import Store
from tests.unit.oci_support import (
    CONFIG,
    INDEX,
    LAYER,
    Json,
    Layout,
    archive,
    assert_refused,
    config_of,
    files,
    named,
)

GOOD = files(a="a", b="b")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty layout."""
    return Layout(tmp_path / "layout")


OUT = {"name": "out", "type": tarfile.SYMTYPE}
LINK = tarfile.LNKTYPE
ATTACKS: dict[str, tuple[list[tuple[Json, bytes]], str]] = {
    "..": ([({"name": "../x"}, b"x")], r"contains '\.\.'"),
    "hidden ..": ([({"name": "a/./../../x"}, b"x")], r"contains '\.\.'"),
    "a directory ..": ([({"name": "..", "type": tarfile.DIRTYPE}, b"")], r"contains '\.\.'"),
    "absolute": ([({"name": "/etc/passwd"}, b"x")], "absolute"),
    "absolute in a pax header": (
        [({"name": "x", "pax_headers": {"path": "//etc/passwd"}}, b"x")],
        "absolute",
    ),
    "through a symlink": ([({**OUT, "linkname": "/etc"}, b""), ({"name": "out/x"}, b"x")], "not a directory"),
    "through a relative symlink": (
        [({**OUT, "linkname": "../.."}, b""), ({"name": "out/x"}, b"x")],
        "not a directory",
    ),
    "through two symlinks": (
        [
            ({**OUT, "linkname": "."}, b""),
            ({**OUT, "name": "two", "linkname": "out/.."}, b""),
            ({"name": "two/x"}, b"x"),
        ],
        "not a directory",
    ),
    "a directory through a symlink": (
        [({**OUT, "linkname": "/etc"}, b""), ({"name": "out/d", "type": tarfile.DIRTYPE}, b"")],
        "not a directory",
    ),
    "a hard link outside": ([({"name": "x", "type": LINK, "linkname": "../../etc/passwd"}, b"")], r"'\.\.'"),
    "an absolute hard link": ([({"name": "x", "type": LINK, "linkname": "/etc/passwd"}, b"")], "absolute"),
    "a hard link through a symlink": (
        [({**OUT, "linkname": "/etc"}, b""), ({"name": "x", "type": LINK, "linkname": "out/passwd"}, b"")],
        "not a directory",
    ),
    "a hard link to nothing": ([({"name": "x", "type": LINK, "linkname": "none"}, b"")], "not there"),
    "a hard link to a directory": (
        [({"name": "d/x"}, b""), ({"name": "x", "type": LINK, "linkname": "d"}, b"")],
        "a directory",
    ),
    "a hard link to the root": ([({"name": "x", "type": LINK, "linkname": "."}, b"")], "'.'"),
    "a hard link to itself": (
        [({"name": "x"}, b""), ({"name": "x", "type": LINK, "linkname": "x"}, b"")],
        "to itself",
    ),
    "a symlink in place of the root": (
        [({"name": ".", "type": tarfile.SYMTYPE, "linkname": "/"}, b"")],
        "the root",
    ),
    "a whiteout of nothing": ([({"name": ".wh."}, b"")], "whiteout of nothing"),
    "a whiteout of .": ([({"name": "d/.wh.."}, b"")], "whiteout of nothing"),
    "a whiteout of ..": ([({"name": "d/.wh..."}, b"")], "whiteout of nothing"),
    "a whiteout as a directory": ([({"name": ".wh.x/y"}, b"")], "the name of a whiteout"),
    "a component of 256 bytes": ([({"name": "d/" + "x" * 256}, b"")], "longer than 255 bytes"),
    "a directory of 256 bytes": ([({"name": "x" * 256 + "/d"}, b"")], "longer than 255 bytes"),
    "a path that is too long": ([({"name": "d/" * 2048 + "x"}, b"")], "longer than 4095 bytes"),
    "a zero byte": ([({"name": "x", "pax_headers": {"path": "x\0y"}}, b"")], "zero byte"),
    "an owner out of range": ([({"name": "x", "pax_headers": {"uid": "4294967295"}}, b"")], "no owner"),
    "a negative owner": ([({"name": "x", "pax_headers": {"gid": "-1"}}, b"")], "no number"),
    "a time out of range": ([({"name": "x", "pax_headers": {"mtime": "9" * 19}}, b"")], "no time"),
    "a device out of range": ([({"name": "x", "type": b"3", "devmajor": 5000}, b"")], "no devices"),
    "an attribute without a name": (
        [({"name": "x", "pax_headers": {"SCHILY.xattr.": "1"}}, b"")],
        "cannot unpack",
    ),
    "a zero byte in a key": ([({"name": "x", "pax_headers": {"SCHILY.xattr.user.\0": "1"}}, b"")], "odd one"),
    "a symlink to nothing": ([({"name": "x", "type": tarfile.SYMTYPE}, b"")], "cannot unpack"),
    "no time": ([({"name": "x", "pax_headers": {"mtime": "nan"}}, b"")], "no time"),
    "an unknown type": ([({"name": "x", "type": b"Z"}, b"")], "type that is not known"),
    "a multi-volume part": ([({"name": "x", "type": b"M"}, b"")], "type that is not known"),
    "a huge pax header": (
        [({"name": "x", "pax_headers": {"comment": "x" * (1 << 20)}}, b"")],
        "larger than 1 MiB",
    ),
    "a huge attribute": (
        [({"name": "x", "pax_headers": {"SCHILY.xattr.user.x": "x" * 70_000}}, b"")],
        "cannot unpack a layer",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(store: Store, layout: Layout, attack: str) -> None:
    members, says = ATTACKS[attack]
    layer = archive(({"name": "good"}, b"good"), *members)
    assert_refused(store, layout.index(layout.image([GOOD, layer])), says)


def test_harmless_oddities(store: Store, layout: Layout) -> None:
    """What looks like an attack and is none: it ends up within the layer."""
    layer = archive(
        ({"name": "./"}, b""),
        ({"name": ".", "type": tarfile.DIRTYPE, "mode": 0o750}, b""),
        ({"name": "./", "type": tarfile.DIRTYPE, "mode": 0o711}, b""),
        ({**OUT, "linkname": "/etc"}, b""),
        ({"name": "out", "type": tarfile.DIRTYPE}, b""),
        ({"name": "out/.//inside"}, b"1"),
        ({**OUT, "name": "up", "linkname": "../../.."}, b""),
        ({"name": "same"}, b"first"),
        ({"name": "link", "type": LINK, "linkname": "same"}, b""),
        ({"name": "same"}, b"second"),
        ({"name": "up/.wh.x"}, b""),
    )[512:]
    image = oci.load(store, layout.index(layout.image([layer])))[0].image
    tree = store.layers_of(image)[0].path
    assert (tree / "out/inside").read_bytes() == b"1"
    assert os.readlink(tree / "up") == "../../.."
    assert [(tree / name).read_text() for name in ("same", "link")] == ["second", "first"]
    assert tree.stat().st_mode & 0o7777 == 0o711
    assert sorted(os.listdir(tree)) == ["link", "out", "same", "up"]


# Bombs


def bomb(size: int) -> bytes:
    """Return an archive with a file of so many zeros."""
    header = tarfile.TarInfo("bomb")
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("pack", ["+gzip", "+zstd"])
def test_a_file_that_is_larger_than_the_limit(store: Store, layout: Layout, pack: str) -> None:
    content = bomb(64 << 20) + bytes(64 << 20) + bytes(1024)
    path = layout.index(layout.image([content], pack=pack))
    assert_refused(store, path, "holds more than 1048576 bytes: .* --max-size", limits=Limits(size=1 << 20))
    image = oci.load(store, path)[0].image
    status = (store.layers_of(image)[0].path / "bomb").stat()
    assert (status.st_size, status.st_blocks) == (64 << 20, 0)


def test_a_file_that_claims_to_be_enormous(store: Store, layout: Layout) -> None:
    assert_refused(
        store, layout.index(layout.image([bomb(1 << 60)])), "holds more than .* bytes: .* --max-size"
    )
    assert_refused(store, layout.index(layout.image([bomb(1 << 30)])), "ends too early")


def test_many_files(store: Store, layout: Layout) -> None:
    layer = archive(*(({"name": f"f{at}"}, b"") for at in range(60)))
    other = archive(*(({"name": f"g{at}"}, b"") for at in range(60)))
    path = layout.index(layout.image([layer, other]))
    assert_refused(store, path, "more than 50 files: .* --max-files", limits=Limits(files=50))
    assert_refused(store, path, "more than 100 files", limits=Limits(files=100))  # of all layers together
    assert len(oci.load(store, path, limits=Limits(files=120))) == 1
    deep = archive(({"name": "d/" * 200 + "f"}, b""))
    assert_refused(store, layout.index(layout.image([deep])), "more than 100 files", limits=Limits(files=100))


def test_a_window_larger_than_memory(store: Store, layout: Layout) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=29)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = stream.compress(bomb(1 << 29)) + stream.compress(bytes(1 << 20)) + stream.flush()
    config = layout.blob(config_of([GOOD]), CONFIG)
    layout.index(layout.manifest(config, [layout.blob(data, LAYER + "+zstd")]))
    assert_refused(store, layout.path, "zstd: .* too much memory")


# Ordinary users

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_ordinary_user_gets_no_devices_and_no_foreign_powers() -> None:
    layer = archive(
        ({"name": "null", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
        ({"name": "disk", "type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0}, b""),
        ({"name": "pipe", "type": tarfile.FIFOTYPE}, b""),
        ({"name": "su", "mode": 0o6755, "uid": 0, "gid": 0}, b"root's"),
        ({"name": "mine", "mode": 0o6755, "uid": NOBODY, "gid": NOBODY}, b"mine"),
        ({"name": ".wh.gone"}, b""),
        ({"name": "d/", "type": tarfile.DIRTYPE, "mode": 0o2775}, b""),
        ({"name": "d/.wh..wh..opq"}, b""),
    )
    with tempfile.TemporaryDirectory() as place:  # pytest's directories are closed to others
        Path(place).chmod(0o755)
        layout = Layout(Path(place, "layout"))
        layout.index(layout.image([layer], pack=""))
        home = Path(place, "home")
        home.mkdir()
        os.chown(home, NOBODY, NOBODY)
        told: Any = in_child(lambda: load_as(NOBODY, layout.path, home))
    assert told["left_out"] == 2
    assert told["modes"] == {"su": 0o755, "mine": 0o6755, "d": 0o2775, "pipe": 0o644}
    assert told["whiteout"] is True
    assert told["again"] is True


def load_as(user: int, source: Path, home: Path) -> Json:
    os.chdir(source)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    with Store(home / "store") as store:
        loaded = oci.load(store, source)[0]
        tree = store.layers_of(loaded.image)[0].path
        gone = (tree / "gone").lstat()
        oci.save(store, [loaded.image.id], home / "saved", format="oci-dir", compression="none")
        before, after = (
            json.loads((path / "index.json").read_text())["manifests"][0]["digest"]
            for path in (source, home / "saved")
        )
        blobs = [
            set(os.listdir(path / "blobs/sha256")) - {digest[7:]}
            for path, digest in ((source, before), (home / "saved", after))
        ]
        return {
            "left_out": loaded.left_out,
            "modes": {
                name: stat.S_IMODE((tree / name).stat().st_mode) for name in ("su", "mine", "d", "pipe")
            },
            "whiteout": stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0,
            "again": blobs[0] == blobs[1],
        }


def in_child(action: Callable[[], object]) -> object:
    """Return what *action* returns in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(action()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as output:
        text = output.read()
    os.waitpid(child, 0)
    return json.loads(text)


def test_indexes_that_multiply_are_read_once_each(store: Store, layout: Layout) -> None:
    """Six of them, each of which names the next one a thousand times: 10^18 entries, else."""
    entry = layout.image([GOOD])
    for _ in range(6):
        entry = layout.blob({"schemaVersion": 2, "manifests": [entry] * 1000}, INDEX)
    layout.index(entry)
    assert len(oci.load(store, layout.path)) == 1


def test_countless_names_and_steps_are_refused(store: Store, layout: Layout) -> None:
    image = layout.image([GOOD])
    layout.index(*({**image, "annotations": named(f"name:{at}")} for at in range(1001)))
    assert_refused(store, layout.path, "names more than 1000 images")
    steps = [{"created_by": "x", "empty_layer": True}] * 10_000
    config = config_of([GOOD], history=[*steps, {"created_by": "x"}])
    layout.index(layout.image([GOOD], config=config))
    assert_refused(store, layout.path, "more than 10000 steps or layers")


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "a/../../outside"])
def test_a_directory_in_dockers_form_names_no_file_outside(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("{}")
    source = tmp_path / "image"
    source.mkdir()
    (source / "manifest.json").write_text(json.dumps([{"Config": name, "Layers": [], "RepoTags": None}]))
    assert_refused(store, source, "leads out of the image")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device node")
def test_a_device_in_a_layout_is_not_opened(store: Store, layout: Layout) -> None:
    os.mknod(layout.path / "index.json", stat.S_IFCHR | 0o600, os.makedev(240, 77))  # nothing drives it
    assert_refused(store, layout.path, "index.json is not a file")
