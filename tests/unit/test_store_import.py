"""Directories and archives become images, or leave nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs.errors import BadRequest, Forbidden, LayerfsError, NotFound
from layerfs.store import Store, manifest
from layerfs.store.model import Image
from layerfs.union.marking import of_this_process

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")


def tree_of(store: Store, image: Image) -> Path:
    assert len(image.layers) == 1
    return store.layer(image.layers[0]).path


def assert_same(copy: Path, original: Path) -> None:
    """Compare all that a manifest records, and what holes and hard links save."""
    assert list(manifest.records(copy)) == list(manifest.records(original))
    assert (copy / "bin/sh").stat().st_nlink == 2
    assert (copy / "sparse").stat().st_blocks < 100


def archive_of(tree: Path, file: Path) -> bytes:
    command: list[str | Path] = [
        "tar",
        "--format=pax",
        "--xattrs",
        "--xattrs-include=*",
        "-S",
        "-cf",
        file,
        "-C",
        tree,
        ".",
    ]
    subprocess.run(command, check=True)
    return file.read_bytes()


def archive(*members: tuple[dict[str, Any], bytes]) -> bytes:
    """Return an archive of members with these attributes and contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for attributes, content in members:
            info = tarfile.TarInfo()
            for name, value in attributes.items():
                setattr(info, name, value)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def load(store: Store, data: bytes) -> Path:
    return tree_of(store, store.import_image(io.BytesIO(data), "x"))


def assert_refused(store: Store, data: bytes, says: str = "refused|not a tar archive") -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        store.import_image(io.BytesIO(data), "x")
    assert "\n" not in str(caught.value)
    assert store.images() == []
    assert list((store.root / "layers").iterdir()) == []


def test_a_directory(store: Store, tree: Path) -> None:
    image = store.import_image(tree, "debian:12", message="as it came", changes=["CMD sh"])
    assert_same(tree_of(store, image), tree)
    assert image.history[0].created_by == f"Imported from {tree}"
    assert (image.comment, image.history[0].comment) == ("as it came", "as it came")
    assert image.config == {"Cmd": ["/bin/sh", "-c", "sh"]}
    assert store.layer(image.layers[0]).manifest_done
    size = store.layer_size(image.layers[0])
    assert size == sum(
        file.lstat().st_size
        for file in tree.rglob("*")
        if stat.S_ISREG(file.lstat().st_mode) and file.name != "ash"
    )


def test_a_link_to_a_directory(store: Store, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    assert_same(tree_of(store, store.import_image(tmp_path / "link", None)), tree)


@needs_root
def test_owners_devices_and_private_attributes(store: Store, tree: Path, tmp_path: Path) -> None:
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "whiteout", stat.S_IFCHR, 0)
    os.chown(tree / "lib", 12, 34, follow_symlinks=False)
    os.chown(tree / "bin/sh", 56, 78)
    (tree / "bin/sh").chmod(0o6755)
    capability = b"\x01\0\0\x02\0\x20" + bytes(14)
    os.setxattr(tree / "odd \udcff\n=\\ name", "security.capability", capability)
    os.setxattr(tree / "etc", "trusted.note", b"1")
    assert_same(tree_of(store, store.import_image(tree, "dir")), tree)
    archive_of(tree, tmp_path / "x.tar")
    assert_same(tree_of(store, store.import_image(tmp_path / "x.tar", "tar")), tree)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "two zstd frames": lambda data: b"".join(map(zstandard.compress, (data[:5000], data[5000:]))),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("how", COMPRESSORS)
def test_archives(store: Store, tree: Path, tmp_path: Path, how: str) -> None:
    data = COMPRESSORS[how](archive_of(tree, tmp_path / "plain"))
    (tmp_path / "archive").write_bytes(data)
    seen: list[int] = []
    image = store.import_image(tmp_path / "archive", "x", progress=seen.append)
    assert_same(tree_of(store, image), tree)
    assert (seen[-1], seen) == (len(data), sorted(seen))
    assert image.history[0].created_by == f"Imported from {tmp_path / 'archive'}"


def test_a_pipe(store: Store, tree: Path) -> None:
    command: list[str | Path] = ["tar", "--format=gnu", "-S", "-cf", "-", "-C", tree, "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        image = store.import_image(cast(BinaryIO, tar.stdout), None)
        assert tar.wait() == 0
    copy = tree_of(store, image)
    names = [record.path for record in manifest.records(copy)]
    assert names == [record.path for record in manifest.records(tree)]
    assert image.history[0].created_by == "Imported from -"


def test_a_pipe_that_stays_open_after_an_error(store: Store) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as stream, os.fdopen(write, "wb", buffering=0) as pipe:
        pipe.write(archive(({"name": "../x"}, b""))[:512] + bytes(512))
        with pytest.raises(BadRequest, match="contains"):
            store.import_image(cast(BinaryIO, stream), None)


def test_later_members_replace_earlier_ones(store: Store) -> None:
    tree = load(
        store,
        archive(
            ({"name": "a"}, b"old"),
            ({"name": "d", "type": tarfile.DIRTYPE, "mode": 0o700, "mtime": 5}, b""),
            ({"name": "d/x"}, b"1"),
            ({"name": "a"}, b"new"),
            ({"name": "d/", "type": tarfile.DIRTYPE, "mode": 0o1777, "mtime": 7}, b""),
            ({"name": "deep/er/file"}, b"2"),
            ({"name": "e", "type": tarfile.DIRTYPE}, b""),
            ({"name": "e", "type": tarfile.SYMTYPE, "linkname": "/etc"}, b""),
            ({"name": "full/of/things"}, b"3"),
            ({"name": "full/of", "type": tarfile.SYMTYPE, "linkname": "/etc"}, b""),
            ({"name": "full"}, b"a file"),
        ),
    )
    assert (tree / "full").read_text() == "a file"
    assert (tree / "a").read_text() == "new"
    assert (tree / "d/x").read_text() == "1"
    assert (tree / "d").stat().st_mode & 0o7777 == 0o1777
    assert (tree / "d").stat().st_mtime == 7
    assert (tree / "deep/er").stat().st_mode & 0o7777 == 0o755
    assert os.readlink(tree / "e") == "/etc"


@needs_root
def test_whiteouts(store: Store) -> None:
    tree = load(
        store,
        archive(
            ({"name": "d/.wh.gone"}, b""),
            ({"name": "d/.wh..wh..opq"}, b""),
            ({"name": "d/.wh..wh.plnk"}, b""),
            ({"name": "d/both"}, b"x"),
            ({"name": "d/.wh.both"}, b""),
        ),
    )
    assert sorted(os.listdir(tree / "d")) == ["both", "gone"]
    status = (tree / "d/gone").lstat()
    assert (stat.S_ISCHR(status.st_mode), status.st_rdev) == (True, 0)
    assert os.getxattr(tree / "d", "trusted.overlay.opaque") == b"y"
    assert (tree / "d/both").read_bytes() == b"x"


def test_an_archive_cannot_say_what_a_directory_is_to_an_overlay(store: Store) -> None:
    names = ("trusted.overlay.opaque", "user.overlay.opaque", "user.mine")
    headers = {f"SCHILY.xattr.{name}": "y" for name in names}
    tree = load(store, archive(({"name": "d", "type": tarfile.DIRTYPE, "pax_headers": headers}, b"")))
    stored = {of_this_process().stored_name(os.fsencode(name)) for name in names if os.geteuid() == 0}
    assert {os.fsencode(name) for name in os.listxattr(tree / "d")} == stored


LINK = {"name": "out", "type": tarfile.SYMTYPE, "linkname": "/tmp"}


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([({"name": "/etc/passwd"}, b"x")], "its path is absolute"),
        ([({"name": "a/../../b"}, b"x")], r"its path contains '\.\.'"),
        ([({"name": ".."}, b"")], r"its path contains '\.\.'"),
        ([(LINK, b""), ({"name": "out/x"}, b"x")], "'out' is a link or file, not a directory"),
        ([({"name": "f"}, b""), ({"name": "f/x"}, b"x")], "'f' is a link or file, not a directory"),
        ([(LINK, b""), ({"name": "out/d/x"}, b"x")], "'out' is a link or file, not a directory"),
        (
            [(LINK, b""), ({"name": "h", "type": tarfile.LNKTYPE, "linkname": "out/x"}, b"")],
            "'out' is a link or file, not a directory",
        ),
        ([({"name": "h", "type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, b"")], "is absolute"),
        ([({"name": "h", "type": tarfile.LNKTYPE, "linkname": "../x"}, b"")], "contains"),
        ([({"name": "h", "type": tarfile.LNKTYPE, "linkname": "nothing"}, b"")], "is not there"),
        (
            [({"name": "h"}, b""), ({"name": "h", "type": tarfile.LNKTYPE, "linkname": "h"}, b"")],
            "a link to itself",
        ),
        ([({"name": "x" * 256}, b"")], "longer than 255 bytes"),
        ([({"name": "d/" * 2100 + "x"}, b"")], "longer than 4095 bytes"),
        ([({"name": ".wh.d/x"}, b"")], "the name of a whiteout"),
        ([({"name": "."}, b"file")], "the root of a layer is a directory"),
        ([({"name": "d/.wh."}, b"")], "a whiteout of nothing"),
        ([({"name": "d/.wh..."}, b"")], "a whiteout of nothing"),
        ([({"name": "nul", "pax_headers": {"path": "a\0b"}}, b"")], "damaged one"),
        ([({"name": "t", "pax_headers": {"mtime": "nan"}}, b"")], "damaged one"),
        ([({"name": "u", "pax_headers": {"uid": str(1 << 70)}}, b"")], "damaged one"),
    ],
)
def test_hostile_members(store: Store, members: list[tuple[dict[str, Any], bytes]], says: str) -> None:
    assert_refused(store, archive(({"name": "good"}, b"good"), *members), says)


def test_a_link_that_leads_outside_is_only_a_link(store: Store) -> None:
    tree = load(store, archive((LINK, b""), ({"name": "out"}, b"mine")))
    assert (tree / "out").read_bytes() == b"mine"
    assert not (tree / "out").is_symlink()


@pytest.mark.parametrize("how", COMPRESSORS)
def test_archives_that_are_cut_short(store: Store, tmp_path: Path, how: str) -> None:
    content = os.urandom(70_000)
    data = archive(*(({"name": f"f{number}"}, content) for number in range(3)))
    whole = data[: 3 * (512 + 70_144)]  # all the members, without the end marker
    for length in (0, 100, 512, 5000, 512 + 70_144, len(whole)):
        assert_refused(store, COMPRESSORS[how](data[:length]))
    packed = COMPRESSORS[how](data)
    for length in (1, 8, len(packed) // 3, len(packed) - 12_000):
        assert_refused(store, packed[:length])


def test_a_damaged_header_is_not_taken_for_the_end(store: Store) -> None:
    data = bytearray(archive(({"name": "a"}, b"1"), ({"name": "b"}, b"2"), ({"name": "c"}, b"3")))
    data[1024] ^= 0xFF
    assert_refused(store, bytes(data), "bad checksum")


def test_what_is_no_archive(store: Store) -> None:
    for data in (
        b"",
        b"hello",
        b"x" * 10_000,
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd" + b"x" * 99,
        b"BZh9",
        b"\xfd7zXZ\0",
    ):
        assert_refused(store, data, "not a tar archive")


def test_headers_have_a_limit(store: Store) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    assert_refused(store, header.tobuf(tarfile.GNU_FORMAT) + b"x" * 2048, "larger than 1 MiB")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_harmless(store: Store, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes are changed: one clear error and nothing left, or an image."""
    whole = bytearray(
        archive(
            ({"name": "d", "type": tarfile.DIRTYPE}, b""),
            ({"name": "d/f", "pax_headers": {"mtime": "1.5", "SCHILY.xattr.user.a": "b"}}, b"x" * 600),
            ({"name": "l", "type": tarfile.LNKTYPE, "linkname": "d/f"}, b""),
            ({"name": "s", "type": tarfile.SYMTYPE, "linkname": "d"}, b""),
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, 14)) * 512
        whole[start + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        block = whole[start : start + 512]
        block[148:156] = b"        "
        whole[start + 148 : start + 156] = b"%06o\0 " % sum(block)  # so that more than the checksum is tried
    refusal = ""
    try:
        store.remove_image(store.import_image(io.BytesIO(bytes(whole)), None).id)
    except LayerfsError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert list((store.root / "layers").iterdir()) == []


def test_bad_sources(store: Store, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"cannot import {tmp_path}/none: No such file"):
        store.import_image(tmp_path / "none", "x")
    with pytest.raises(BadRequest, match="it contains the store"):
        store.import_image(tmp_path, "x")
    with pytest.raises(BadRequest, match="invalid reference"):
        store.import_image(tree, "Not Good")
    with pytest.raises(BadRequest, match="RUN"):
        store.import_image(tree, "x", changes=["RUN x"])
    assert list((store.root / "layers").iterdir()) == []


@needs_root
def test_sources_that_may_not_be_read() -> None:
    """As an ordinary user: one line that names the file, and nothing left."""
    with tempfile.TemporaryDirectory() as name:  # pytest's directories are closed to others
        Path(name).chmod(0o755)
        lines = refusals_of_an_ordinary_user(Path(name))
    assert len(lines) == 3
    assert "Permission denied" in lines[0]
    assert "etc/shadow" in lines[0]
    assert "Permission denied" in lines[1]
    assert "x.tar" in lines[1]
    assert lines[2] == "[] []"


def refusals_of_an_ordinary_user(place: Path) -> list[str]:
    tree, mine = place / "tree", place / "mine"
    (tree / "etc").mkdir(parents=True)
    mine.mkdir()
    os.chown(mine, 65534, 65534)
    for secret in (tree / "etc/shadow", place / "x.tar"):
        secret.write_text("secret")
        secret.chmod(0o600)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with Store(mine / "store") as store:
                for source in (tree, place / "x.tar"):
                    try:
                        store.import_image(source, "x")
                    except Forbidden as error:
                        os.write(write, f"{error}\n".encode())
                os.write(write, f"{os.listdir(mine / 'store/layers')} {store.images()}\n".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as output:
        lines = output.read().splitlines()
    os.waitpid(child, 0)
    return lines
