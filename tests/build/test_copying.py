"""COPY, as a mount of what it made shows it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from layerfs.build.sources import of_stack
from layerfs.errors import BadRequest, LayerfsError, NotFound
from tests.build.stages import Stage
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


# -- what cannot be done -----------------------------------------------------------------------------


def test_a_file_does_not_take_the_place_of_a_directory(stage: Stage) -> None:
    (stage.layer() / "d/a").mkdir(parents=True)
    (stage.context / "a").write_text("a")
    with pytest.raises(BadRequest, match="a directory is there"):
        stage.copy("a", to="/d/")


@pytest.mark.parametrize("there", ["a file", "a link to a directory"])
def test_a_directory_does_not_take_the_place_of_anything_else(stage: Stage, there: str) -> None:
    below = stage.layer()
    (below / "elsewhere").mkdir()
    if there == "a file":
        (below / "sub").write_text("sub")
    else:
        (below / "sub").symlink_to("elsewhere")
    (stage.context / "d/sub").mkdir(parents=True)
    with pytest.raises(BadRequest, match="cannot copy a directory to /sub: a file is there"):
        stage.copy("d", to="/")


@pytest.mark.parametrize("destination", ["/file/", "/file/x", "/file/x/y", "/link/x"])
def test_a_file_in_the_way_of_the_destination(stage: Stage, destination: str) -> None:
    below = stage.layer()
    (below / "file").write_text("file")
    (below / "link").symlink_to("file")
    (stage.context / "a").write_text("a")
    with pytest.raises(BadRequest, match="/file is a file, not a directory"):
        stage.copy("a", to=destination)


def test_several_files_need_a_directory(stage: Stage) -> None:
    (stage.layer() / "there").mkdir()
    for name in ("a", "b"):
        (stage.context / name).write_text(name)
    with pytest.raises(BadRequest, match="end it with a slash"):
        stage.copy("a", "b", to="/new")
    with pytest.raises(BadRequest, match="end it with a slash"):
        stage.copy("[ab]", to="/new")
    stage.layers = stage.layers[:1]
    stage.directory = stage.directory / "again"
    stage.directory.mkdir()
    stage.copy("[ab]", to="/there")
    assert {b"there/a", b"there/b"} <= paths(stage.see())


def test_a_loop_of_links_in_the_destination(stage: Stage) -> None:
    below = stage.layer()
    (below / "x").symlink_to("y")
    (below / "y").symlink_to("x")
    (stage.context / "a").write_text("a")
    with pytest.raises(LayerfsError, match="Too many levels of symbolic links"):
        stage.copy("a", to="/x/")


def test_a_source_that_is_not_there(stage: Stage) -> None:
    with pytest.raises(NotFound, match="COPY missing: not found in the build context"):
        stage.copy("missing", to="/")


def test_nothing_outside_the_context_is_copied(stage: Stage) -> None:
    outside = stage.layerfs.directory / "secret"
    outside.write_text("secret")
    (stage.context / "d").mkdir()
    (stage.context / "link").symlink_to(outside)
    (stage.context / "up").symlink_to("../../secret")
    (stage.context / "d/inner").symlink_to("../../secret")
    for source in ("../secret", "d/../../secret", "link", "up", str(outside)):
        with pytest.raises(NotFound):
            stage.copy(source, to="/")
    stage.copy("d", to="/copied")
    assert stage.see()[b"copied/inner"].content == b"../../secret"


def test_dots_in_a_source_do_not_lead_out(stage: Stage) -> None:
    (stage.context / "a").write_text("a")
    stage.copy("../../a", to="/x")
    assert stage.see()[b"x"].content == b"a"


def test_a_context_may_lead_to_itself(stage: Stage) -> None:
    (stage.context / "real").mkdir()
    (stage.context / "real/f").write_text("f")
    (stage.context / "absolute").symlink_to("/real")
    (stage.context / "file").symlink_to("absolute/f")
    stage.copy("absolute", "file", to="/x/")
    seen = stage.see()
    assert (seen[b"x/f"].content, seen[b"x/file"].content) == (b"f", b"f")


def test_a_device_that_would_be_a_whiteout(stage: Stage) -> None:
    os.mknod(stage.context / "gone", stat.S_IFCHR | 0o600, 0)
    with pytest.raises(BadRequest, match="character devices 0:0"):
        stage.copy("gone", to="/")


def test_directories_in_directories_have_an_end(stage: Stage) -> None:
    os.makedirs(stage.context / "/".join(["d"] * 400))
    with pytest.raises(BadRequest, match="more than 256 directories"):
        stage.copy("d", to="/")


# -- what is kept ------------------------------------------------------------------------------------


def test_everything_that_a_file_has(stage: Stage) -> None:
    directory = stage.context / "d"
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


def test_a_large_file(stage: Stage) -> None:
    (stage.context / "big").write_bytes(os.urandom(3 << 20))
    stage.copy("big", to="/")
    assert stage.see()[b"big"].content == (stage.context / "big").read_bytes()


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
