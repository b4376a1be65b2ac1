"""Copying out of a tree and into one, on plain directories: what comes, and what is refused."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from layerfs.archive.streams import Feed
from layerfs.archive.tar import Reader
from layerfs.container import copying
from layerfs.container.extracting import Extractor
from layerfs.errors import BadRequest, LayerfsError
from tests.fuse.oracle import snapshot

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with some of everything, and links that would lead out of it."""
    root = tmp_path / "tree"
    (root / "etc/deep/er").mkdir(parents=True)
    (root / "etc/motd").write_text("hello")
    (root / "etc/deep/er/file").write_text("deep")
    os.link(root / "etc/motd", root / "etc/deep/motd")
    (root / "etc/relative").symlink_to("../../../../../etc/motd")
    (root / "absolute").symlink_to("/etc")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere/../else")
    (root / "chain").symlink_to("absolute/deep")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "etc/su").write_bytes(b"x" * 1000)
    os.chown(root / "etc/su", 3, 70_000)
    (root / "etc/su").chmod(0o6751)
    os.setxattr(root / "etc/su", "user.note", b"\0\xff=")
    os.setxattr(root / "etc", "user.dir", b"d")
    with (root / "etc/sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    (root / os.fsdecode(b"odd \xff\n")).write_text("odd")
    os.utime(root / "etc/su", ns=(1, 1_600_000_000_123_456_789))
    os.utime(root / "etc/deep", ns=(1, 1_500_000_000_987_654_321))
    return root


def opened(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def archived(tree: Path, path: str, name: str | None = None) -> bytes:
    root = opened(tree)
    try:
        with copying.source(root, path) as fd:
            return b"".join(copying.archive(fd, path, name))
    finally:
        os.close(root)


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def extract(tree: Path, path: str, archive: bytes, *, overwrite: bool = True) -> None:
    root = opened(tree)
    try:
        with Extractor.in_root(root, path, overwrite=overwrite) as extractor:
            reader = Reader(Feed(iter([archive])), needs_end=False)
            for member in reader:
                extractor.add(member, reader)
            extractor.finish()
    finally:
        os.close(root)


def tar(*members: tuple[str, str | bytes | None]) -> bytes:
    """Return an archive of files (bytes), directories (None), and links (a text)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                hard = content.startswith("=")
                info.type, info.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), content.lstrip("=")
            else:
                info.size = len(content)
            made.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "name", "kind", "target"),
    [
        ("/etc/motd", "motd", stat.S_IFREG, ""),
        ("etc/motd", "motd", stat.S_IFREG, ""),
        ("/etc/", "etc", stat.S_IFDIR, ""),
        ("/etc/.", ".", stat.S_IFDIR, ""),
        ("/", "/", stat.S_IFDIR, ""),
        ("/../../..", "..", stat.S_IFDIR, ""),
        ("/absolute", "absolute", stat.S_IFLNK, "/etc"),
        ("/absolute/", "absolute", stat.S_IFDIR, ""),
        ("/absolute/relative", "relative", stat.S_IFLNK, "/etc/motd"),
        ("/chain", "chain", stat.S_IFLNK, "/etc/deep"),
        ("/dangling", "dangling", stat.S_IFLNK, "/else"),
        ("/fifo", "fifo", stat.S_IFIFO, ""),
        ("/null", "null", stat.S_IFCHR, ""),
    ],
)
def test_what_is_at_a_path(tree: Path, path: str, name: str, kind: int, target: str) -> None:
    root = opened(tree)
    with copying.source(root, path) as fd:
        found = copying.describe(root, path, fd)
    os.close(root)
    assert (found.name, stat.S_IFMT(found.status.st_mode), found.link_target) == (name, kind, target)


@pytest.mark.parametrize("path", ["/nope", "/etc/motd/", "/etc/motd/x", "/loop", "/loop/", "/" + "x" * 300])
def test_paths_that_lead_nowhere(tree: Path, path: str) -> None:
    root = opened(tree)
    with pytest.raises(OSError) as caught, copying.source(root, path) as fd:
        copying.describe(root, path, fd)
    os.close(root)
    assert isinstance(copying.refused(caught.value, path, "c"), LayerfsError)


def test_the_names_in_an_archive(tree: Path) -> None:
    assert names(archived(tree, "/etc/motd")) == ["motd"]
    inside = ["deep", "deep/er", "deep/er/file", "deep/motd", "motd", "relative", "sparse", "su"]
    assert names(archived(tree, "/etc")) == ["etc", *(f"etc/{name}" for name in inside)]
    assert names(archived(tree, "/etc/.")) == [".", *(f"./{name}" for name in inside)]
    assert names(archived(tree, "/absolute")) == ["absolute"]
    assert names(archived(tree, "/absolute/"))[:2] == ["absolute", "absolute/deep"]
    assert names(archived(tree, "/etc/deep", "other")) == ["other", "other/er", "other/er/file", "other/motd"]
    assert names(archived(tree, "/"))[1:3] == ["/absolute", "/chain"]


def test_there_and_back(tree: Path, tmp_path: Path) -> None:
    """What is copied out and in again is the same, to the last attribute."""
    (tmp_path / "back").mkdir()
    extract(tmp_path / "back", "/", archived(tree, "/", "all"))
    before, after = (
        snapshot.take(os.fsencode(place), 1 << 62, kernel=False) for place in (tree, tmp_path / "back/all")
    )
    assert snapshot.differences(before, after) == []
    assert (tmp_path / "back/all/etc/sparse").stat().st_blocks < 100


def test_a_directory_is_merged_and_a_file_replaced(tree: Path) -> None:
    other = (tree / "etc/motd").stat().st_ino
    extract(tree, "/", tar(("etc", None), ("etc/motd", b"new"), ("etc/new/er/x", b"x"), (".wh.a", b"plain")))
    assert (tree / "etc/motd").read_text() == "new"
    assert (tree / "etc/motd").stat().st_ino != other
    assert (tree / "etc/deep/motd").read_text() == "hello"
    assert (tree / "etc/new/er/x").read_text() == "x"
    assert (tree / ".wh.a").read_text() == "plain"


def test_a_directory_and_anything_else_change_places_only_if_that_is_wanted(tree: Path) -> None:
    for archive in (tar(("etc", b"file")), tar(("fifo", None)), tar(("absolute", None))):
        with pytest.raises(BadRequest, match="cannot overwrite"):
            extract(tree, "/", archive, overwrite=False)
    extract(tree, "/", tar(("etc/x/y", b"1"), ("etc", b"file"), ("fifo", None), ("fifo/z", b"2")))
    assert (tree / "etc").read_text() == "file"
    assert (tree / "fifo/z").read_text() == "2"


def test_links_lead_to_the_tree(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    extract(
        tree,
        "/absolute",
        tar(("up", "../../../../.."), ("up/etc/here", b"here"), ("link", "=/motd")),
    )
    assert (tree / "etc/here").read_text() == "here"
    assert (tree / "etc/link").read_text() == "hello"
    assert list((tmp_path / "etc").iterdir()) == []


@pytest.mark.parametrize(
    "archive",
    [
        tar(("../x", b"x")),
        tar(("a/../../x", b"x")),
        tar(("..", None)),
        tar(("x", "=../../etc/passwd")),
        tar(("x", "=nowhere")),
        tar(("etc/motd", "=etc/motd")),
        tar(("etc/motd/x", b"x")),
        tar(("loop/x", b"x")),
        tar(("dangling/x", b"x")),
        tar(("x" * 300, b"x")),
        tar(("x", bytes(1000)))[:900],
        b"garbage" * 100,
    ],
)
def test_archives_that_are_refused(tree: Path, tmp_path: Path, archive: bytes) -> None:
    with pytest.raises(LayerfsError):
        extract(tree, "/", archive)
    assert {path.name for path in tmp_path.iterdir()} == {"tree"}
    assert not (tree / "x").exists()


def test_a_copy_to_this_side_follows_no_link(tree: Path) -> None:
    """An archive of somebody else may make a link, and then name something below it."""
    place = tree / "etc"
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    with Extractor.beneath(fd, str(place)) as extractor:
        reader = Reader(Feed(iter([tar(("out", ".."), ("out/evil", b"x"))])))
        members = iter(reader)
        extractor.add(next(members), reader)
        evil = next(members)
        with pytest.raises(BadRequest, match="a file or a link"):
            extractor.add(evil, reader)
    os.close(fd)
    assert not (tree / "evil").exists()


def test_an_owner_for_everything(tree: Path) -> None:
    root = opened(tree)
    with Extractor.in_root(root, "/", owner=(12, 34)) as extractor:
        reader = Reader(Feed(iter([tar(("a/b", b"x"), ("c", "d"))])))
        for member in reader:
            extractor.add(member, reader)
        extractor.finish()
    os.close(root)
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (tree / "a/b", tree / "a", tree / "c")}
    assert owners == {(12, 34)}
