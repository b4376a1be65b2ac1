"""COPY, as a mount of what it made shows it."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from layerfs.build import context, copying
from layerfs.build.copying import Job
from layerfs.build.sources import of_stack
from tests.build.archives import archive, compressed, file, of_tree
from tests.build.stages import Stage, stack_of
from tests.conftest import NOBODY, as_user
from tests.fuse.oracle import snapshot
from tests.fuse.oracle.snapshot import Snapshot

pytestmark = pytest.mark.root

OLD = 1_500_000_000_123_456_789
CAPABILITY = b"\x01\0\0\x02\0\x20" + bytes(14)


def paths(seen: Snapshot) -> set[bytes]:
    return set(seen) - {b""}


def age(*paths: Path) -> None:
    for path in paths:
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)


# -- where things go ---------------------------------------------------------------------------------


def test_a_file_goes_into_a_directory_whose_name_ends_with_a_slash(stage: Stage) -> None:
    (stage.context / "a").write_text("a")
    (stage.context / "a").chmod(0o640)
    os.chown(stage.context / "a", 1234, 1234)
    age(stage.context / "a")
    copied = stage.copy("a", to="/new/deep/")
    assert (copied.files, copied.size) == (1, 1)
    seen = stage.see()
    assert paths(seen) == {b"new", b"new/deep", b"new/deep/a"}
    file = seen[b"new/deep/a"]
    assert (file.content, file.mode, file.uid, file.gid, file.mtime) == (b"a", 0o640, 0, 0, OLD)
    for path in (b"new", b"new/deep"):
        assert (seen[path].mode, seen[path].uid, seen[path].gid) == (0o755, 0, 0)


def test_a_file_gets_the_name_of_the_destination(stage: Stage) -> None:
    (stage.context / "a").write_text("a")
    stage.copy("a", to="/new/b")
    assert paths(stage.see()) == {b"new", b"new/b"}


@pytest.mark.parametrize("destination", [".", "", "./", "sub/.."])
def test_a_relative_destination_is_in_the_working_directory(stage: Stage, destination: str) -> None:
    (stage.layer() / "work").mkdir()
    (stage.context / "a").write_text("a")
    stage.copy("a", to=destination, workdir="/work")
    assert paths(stage.see()) == {b"work", b"work/a"}


def test_the_contents_of_a_directory_are_copied_and_not_the_directory(stage: Stage) -> None:
    (stage.context / "d/e").mkdir(parents=True)
    (stage.context / "d/e/f").write_text("f")
    stage.copy("d", to="/new")
    assert paths(stage.see()) == {b"new", b"new/e", b"new/e/f"}


def test_a_file_takes_the_place_of_a_file_and_of_a_link_in_a_directory(stage: Stage) -> None:
    below = stage.layer()
    (below / "a").write_text("before")
    (below / "real").write_text("stays")
    (below / "b").symlink_to("real")
    for name in ("a", "b"):
        (stage.context / name).write_text("after")
    stage.copy("a", "b", to="/")
    seen = stage.see()
    assert [seen[path].content for path in (b"a", b"b", b"real")] == [b"after", b"after", b"stays"]


def test_links_in_the_destination_are_followed_within_the_root(stage: Stage) -> None:
    below = stage.layer()
    (below / "usr/bin").mkdir(parents=True)
    (below / "bin").symlink_to("/usr/bin")
    (below / "usr/out").symlink_to("../../../../../usr/bin/../new")
    (below / "name").symlink_to("usr/target")
    (stage.context / "a").write_text("a")
    stage.copy("a", to="/bin/")
    stage.copy("a", to="/usr/out/x")
    stage.copy("a", to="/name")
    seen = stage.see()
    assert {b"usr/bin/a", b"usr/new", b"usr/new/x", b"usr/target"} <= paths(seen)
    assert stat.S_ISLNK(seen[b"bin"].type)
    assert seen[b"name"].content == b"usr/target"


def test_directories_that_are_there_keep_what_they_are(stage: Stage) -> None:
    below = stage.layer()
    (below / "etc/app").mkdir(parents=True)
    (below / "etc/other").write_text("other")
    for path in (below / "etc/app", below / "etc"):
        os.chown(path, 5, 6)
        path.chmod(0o2711)
        os.setxattr(path, "user.note", b"kept")
    age(below / "etc/app", below / "etc")
    (stage.context / "a").write_text("a")
    stage.copy("a", to="/etc/app/new/a")
    seen = stage.see()
    for name in (b"etc", b"etc/app"):
        item = seen[name]
        assert (item.mode, item.uid, item.gid) == (0o2711, 5, 6)
        assert item.attributes == (("user.note", b"kept"),)
    assert seen[b"etc"].mtime == OLD, "nothing in it has changed"
    assert seen[b"etc/app"].mtime != OLD, "a name has come"
    assert seen[b"etc/other"].content == b"other"


def test_merged_directories_become_as_those_in_the_context(stage: Stage) -> None:
    below = stage.layer()
    (below / "d/sub").mkdir(parents=True)
    (below / "d/sub/kept").write_text("kept")
    os.setxattr(below / "d/sub", "user.note", b"kept")
    os.chown(below / "d/sub", 7, 7)
    (stage.context / "d/sub").mkdir(parents=True)
    (stage.context / "d/sub").chmod(0o700)
    age(stage.context / "d/sub", stage.context / "d")
    stage.copy("d", to="/d")
    seen = stage.see()
    sub = seen[b"d/sub"]
    assert (sub.mode, sub.uid, sub.mtime) == (0o700, 0, OLD)
    assert sub.attributes == (("user.note", b"kept"),)
    assert seen[b"d/sub/kept"].content == b"kept"
    assert (seen[b"d"].mode, seen[b"d"].mtime) == (0o755, OLD)


def test_the_root_stays_as_it_is(stage: Stage) -> None:
    below = stage.layer()
    below.chmod(0o711)
    os.chown(below, 3, 4)
    os.setxattr(below, "user.note", b"root")
    (stage.context / "a").write_text("a")
    stage.copy("a", to="/a")
    root = stage.see()[b""]
    assert (root.mode, root.uid, root.gid, root.attributes) == (0o711, 3, 4, (("user.note", b"root"),))


# -- what is kept ------------------------------------------------------------------------------------


def fill_with_everything(directory: Path) -> None:
    (directory / "sub").mkdir(parents=True)
    (directory / "sub").chmod(0o1777)
    (directory / "setuid").write_bytes(b"\x7fELF" + bytes(9000))
    (directory / "setuid").chmod(0o4755)
    os.setxattr(directory / "setuid", "security.capability", CAPABILITY)
    os.setxattr(directory / "setuid", "user.note", b"\0\xff")
    os.setxattr(directory / "sub", "trusted.overlay.opaque", b"y")
    os.setxattr(directory / "sub", "trusted.overlay.redirect", b"/etc")
    os.link(directory / "setuid", directory / "sub/again")
    (directory / "link").symlink_to("nowhere")
    os.mkfifo(directory / "pipe")
    (directory / "pipe").chmod(0o620)
    os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (directory / "sparse").open("wb") as sparse:
        sparse.seek(8 << 20)
        sparse.write(b"end")
    (directory / "empty").touch()
    (directory / os.fsdecode(b"odd \xff\n=\\ name")).write_text("odd")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
    age(*directory.iterdir(), directory / "sub/again", directory)


def test_everything_that_a_file_has(stage: Stage) -> None:
    directory = stage.context / "d"
    fill_with_everything(directory)
    stage.copy("d", to="/")
    seen = stage.see()
    expected = {os.fsencode(path.name) for path in directory.iterdir()} | {b"sub/again"}
    assert paths(seen) == expected - {b"socket"}
    file = seen[b"setuid"]
    assert file.names == (b"setuid", b"sub/again")
    assert (file.mode, file.links, file.size) == (0o4755, 2, 9004)
    assert dict(file.attributes) == {"security.capability": CAPABILITY, "user.note": b"\0\xff"}
    sub = seen[b"sub"]
    assert sub.mode == 0o1777
    assert dict(sub.attributes) == {"trusted.overlay.opaque": b"y", "trusted.overlay.redirect": b"/etc"}
    assert seen[b"pipe"].type == stat.S_IFIFO
    assert seen[b"pipe"].mode == 0o620
    assert seen[b"null"].rdev == os.makedev(1, 3)
    assert (stage.layers[-1] / "sparse").stat().st_blocks < 100
    assert seen[b"sparse"].size == (8 << 20) + 3
    assert {path: item.mtime for path, item in seen.items() if item.mtime != OLD} == {}


def test_names_that_would_be_whiteouts_elsewhere_are_names(stage: Stage) -> None:
    (stage.layer() / "x").write_text("x")
    (stage.context / "d").mkdir()
    for name in (".wh.x", ".wh..wh..opq"):
        (stage.context / "d" / name).write_text(name)
    stage.copy("d", to="/")
    assert stage.stack is not None
    with of_stack(stage.stack, "the stage") as source:
        assert [item.name for item in source.root().items()] == [b".wh..wh..opq", b".wh.x", b"x"]


def test_large_files(stage: Stage) -> None:
    (stage.context / "big").write_bytes(os.urandom(3 << 20))
    with (stage.context / "huge").open("wb") as huge:
        huge.write(os.urandom(1 << 20))
        for at in (200 << 20, (256 << 20) - 4096, 300 << 20, 700 << 20):
            huge.seek(at)
            huge.write(os.urandom(300_000))
        huge.truncate(900 << 20)
    stage.copy("big", "huge", to="/")
    for name in ("big", "huge"):
        first, second = stage.context / name, stage.layers[-1] / name
        assert subprocess.run(["cmp", first, second], timeout=60, check=False).returncode == 0
        assert second.stat().st_blocks < 20_000


def test_the_same_layer_for_the_same_time(stage: Stage) -> None:
    (stage.layer() / "etc").mkdir()
    (stage.context / "d").mkdir()
    (stage.context / "d/new").write_text("new")
    (stage.context / "d/old").write_text("old")
    age(stage.context / "d/old")
    stage.copy("d", to="/etc/app", files=(("EOF", b"text"),), epoch=1_600_000_000)
    seen = stage.see()
    moment = 1_600_000_000 * 10**9
    assert {path: item.mtime for path, item in seen.items()} == {
        b"": moment,
        b"etc": moment,
        b"etc/app": moment,
        b"etc/app/new": moment,
        b"etc/app/old": OLD,
        b"etc/app/EOF": moment,
    }


def test_a_context_that_came_as_an_archive_is_copied_like_a_directory(stage: Stage, other: Stage) -> None:
    directory = stage.context / "d"
    fill_with_everything(directory)
    stage.copy("d", to="/all", epoch=1_600_000_000)
    data = io.BytesIO(of_tree(stage.context))
    (stage.directory / "data").mkdir()
    with context.from_tar(data, stage.directory / "data") as opened:
        assert os.listdir(stage.directory / "data") == []
        other.copy("d", to="/all", source=opened.source, epoch=1_600_000_000)
    assert (other.layers[-1] / "all/sparse").stat().st_blocks < 100
    assert snapshot.differences(stage.see(), other.see()) == []


def test_an_archive_in_a_context_that_came_as_an_archive(stage: Stage) -> None:
    content = os.urandom(300_000)
    inner = archive(file("a", content), file("b"))
    packed = compressed(inner, "gzip")
    data = archive(file("Dockerfile", b"FROM a"), file("before", b"b"), file("x.tgz", packed))
    with context.from_tar(io.BytesIO(data), stage.scratch) as opened:
        stage.copy("x.tgz", to="/un", source=opened.source, word="ADD")
        stage.copy("x.tgz", to="/whole", source=opened.source)
    seen = stage.see()
    assert seen[b"un/a"].content == content
    assert seen[b"whole"].content == packed


def test_what_an_ordinary_user_copies(tmp_path: Path) -> None:
    """Owners that cannot be given stay behind, and with them the bits that would act for others."""
    tmp_path.chmod(0o777)

    def act() -> None:
        for name in ("context/d/sub", "below/d", "layer", "scratch"):
            os.makedirs(name)
        Path("context/Dockerfile").write_text("FROM scratch")
        Path("context/d/sub/x").write_text("x")
        Path("context/d/sub/x").chmod(0o4755)
        Path("context/d/sub").chmod(0o555)
        Path("below/d").chmod(0o555)
        stack = stack_of([Path("below")])
        with (
            context.from_directory(Path("context")) as opened,
            copying.select(
                Job(sources=("d", "d"), destination="/d/"), opened.source, scratch=Path("scratch")
            ) as selection,
        ):
            copying.write(selection, stack, Path("layer"), scratch=Path("scratch"))
        modes = [stat.S_IMODE(os.stat(name).st_mode) for name in ("layer/d", "layer/d/sub", "layer/d/sub/x")]
        if modes != [0o555, 0o555, 0o755]:
            raise OSError(77, str(modes))

    assert as_user(NOBODY, act, where=tmp_path) == 0
