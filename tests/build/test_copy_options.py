"""What COPY's options, wildcards, here-documents and stages do; WORKDIR."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.build import copying
from layerfs.build.modes import Mode
from layerfs.errors import BadRequest, NotFound
from layerfs.union.marking import of_this_process
from layerfs.union.stack import Stack, Tree
from tests.build.stages import Stage
from tests.build.test_copying import OLD, age, paths

pytestmark = pytest.mark.root


def write(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


# -- wildcards ---------------------------------------------------------------------------------------


def test_wildcards_stand_for_names_in_one_directory(stage: Stage) -> None:
    write(stage.context, "src/a.py", "src/b.py", "src/c.txt", "src/sub/d.py", "other/e.py", "src/.f.py")
    stage.copy("s*/?.py", to="/py/")
    stage.copy("*/sub/[^x].py", to="/sub/")
    stage.copy("nothing*", to="/nothing/")
    assert paths(stage.see()) == {b"py", b"py/a.py", b"py/b.py", b"sub", b"sub/d.py"}


def test_wildcards_that_match_directories_copy_what_is_in_them(stage: Stage) -> None:
    write(stage.context, "one/a", "once/b")
    stage.copy("on*", to="/all")
    assert paths(stage.see()) == {b"all", b"all/a", b"all/b"}


def test_a_link_that_a_wildcard_matches_is_followed(stage: Stage) -> None:
    write(stage.context, "real/a")
    (stage.context / "link.x").symlink_to("real/a")
    stage.copy("*.x", to="/d/")
    assert stage.see()[b"d/link.x"].content == b"real/a"


def test_a_wildcard_that_is_not_closed(stage: Stage) -> None:
    write(stage.context, "a")
    with pytest.raises(BadRequest, match="bad pattern"):
        stage.copy("[a", to="/")


# -- owners and modes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chown", "expected"),
    [
        ("1000", (1000, 1000)),
        ("1000:7", (1000, 7)),
        ("app", (20, 21)),
        ("app:0", (20, 0)),
        ("app:staff", (20, 50)),
        ("7:staff", (7, 50)),
        ("root", (0, 0)),
        ("root:root", (0, 0)),
    ],
)
def test_owners(stage: Stage, chown: str, expected: tuple[int, int]) -> None:
    below = stage.layer()
    write(below, "share/x")
    (below / "etc").symlink_to("share")
    (below / "share/passwd").write_text("root:x:0:0:::\napp:x:20:21:App:/:/bin/sh\nbad:x:y:z:::\n")
    (below / "share/group").write_text("root:x:0:\nstaff:x:50:app,root\n")
    write(stage.context, "d/sub/a")
    (stage.context / "d/link").symlink_to("nowhere")
    stage.copy("d", to="/new/app", chown=chown)
    seen = stage.see()
    for path in (b"new", b"new/app", b"new/app/sub", b"new/app/sub/a", b"new/app/link"):
        assert (seen[path].uid, seen[path].gid) == expected, path
    assert (seen[b"share"].uid, seen[b""].uid) == (0, 0)


@pytest.mark.parametrize("chown", ["nobody-here", "app:nobody-here", "bad", ":5", "5:", "4294967296"])
def test_owners_that_are_not_there(stage: Stage, chown: str) -> None:
    write(stage.layer(), "etc/x")
    (stage.layers[0] / "etc/passwd").write_text("app:x:20:21:::\nbad:x:y:z:::\n")
    write(stage.context, "a")
    with pytest.raises(BadRequest):
        stage.copy("a", to="/", chown=chown)


def test_users_of_a_hostile_stage(stage: Stage) -> None:
    below = stage.layer()
    outside = stage.layerfs.directory / "passwd"
    outside.write_text("daemon:x:1:1:::\n")
    (below / "etc").mkdir()
    (below / "etc/passwd").symlink_to(f"/../../../../../../{outside}")
    os.mkfifo(below / "etc/group")
    write(stage.context, "a")
    with pytest.raises(BadRequest, match="no user 'daemon'"):
        stage.copy("a", to="/", chown="daemon")
    with pytest.raises(BadRequest, match="no group 'daemon'"):
        stage.copy("a", to="/", chown="0:daemon")


@pytest.mark.parametrize(
    ("text", "file", "directory"),
    [
        ("600", 0o600, 0o600),
        ("4755", 0o4755, 0o4755),
        ("u=rwX,go=rX", 0o644, 0o755),
        ("+x", 0o755, 0o755),
        ("a+x,u-w", 0o555, 0o555),
        ("g=u,o=", 0o660, 0o770),
        ("u+s,+t", 0o5644, 0o5755),
        ("go-rwx", 0o600, 0o700),
        ("u=rw-r,o+w", 0o246, 0o257),
    ],
)
def test_modes(text: str, file: int, directory: int) -> None:
    mode = Mode(text)
    assert oct(mode.apply(0o100644)) == oct(file)
    assert oct(mode.apply(0o040755)) == oct(directory)


@pytest.mark.parametrize("text", ["", "8", "10000", "0o644", "u", "u=q", "u=rw,", "-1", "u=rw g=r", "rw"])
def test_modes_that_are_none(text: str) -> None:
    with pytest.raises(BadRequest, match="invalid --chmod"):
        Mode(text)


def test_a_mode_is_for_files_and_directories_that_are_copied(stage: Stage) -> None:
    write(stage.context, "d/sub/a")
    (stage.context / "d/link").symlink_to("nowhere")
    stage.copy("d", to="/new", chmod="0750")
    seen = stage.see()
    assert [seen[path].mode for path in (b"new", b"new/sub", b"new/sub/a")] == [0o755, 0o750, 0o750]
    assert seen[b"new/link"].mode == 0o777


# -- parents, exclude, link ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a/b/c/d", {b"a/b/c/d", b"a/b/c/d/foo", b"a/b/c/d/e", b"a/b/c/d/e/bay"}),
        ("a/b/./c/d/foo", {b"c/d", b"c/d/foo"}),
        ("a/./b/./c/d/foo", {b"b/c/d", b"b/c/d/foo"}),
        ("a/./*/c/d/e", {b"b/c/d/e/bay", b"b2/c/d/e/bar"}),
        ("a/b*/./c/**/e", {b"c/d/e/bay", b"c/d/e/bar"}),
        ("a/**/ba*", {b"a/b/c/d/e/bay", b"a/b2/c/d/e/bar"}),
        ("./a/b/../b2/c/d/e/bar", {b"a/b2/c/d/e/bar"}),
        ("a/none*", set()),
    ],
)
def test_parents(stage: Stage, source: str, expected: set[bytes]) -> None:
    write(stage.context, "a/b/c/d/foo", "a/b/c/d/e/bay", "a/b2/c/d/e/bar", "a/b2/other/x")
    (stage.context / "a/b").chmod(0o700)
    stage.copy(source, to="/out/", parents=True)
    seen = stage.see()
    found = {path.removeprefix(b"out/") for path in paths(seen) - {b"out"}}
    assert expected <= found
    files = {path for path in found if seen[b"out/" + path].content}
    assert files == {path for path in expected if seen[b"out/" + path].content}
    if b"a/b" in found:
        assert seen[b"out/a/b"].mode == 0o700


def test_parents_that_are_there_keep_what_they_are(stage: Stage) -> None:
    (stage.layer() / "usr").mkdir(mode=0o711)
    write(stage.context, "usr/lib/x")
    (stage.context / "usr").chmod(0o700)
    stage.copy("usr/lib/x", to="/", parents=True)
    assert stage.see()[b"usr"].mode == 0o711


def test_parents_of_nothing(stage: Stage) -> None:
    with pytest.raises(NotFound, match="COPY a/b: not found"):
        stage.copy("a/b", to="/", parents=True)


def test_exclude(stage: Stage) -> None:
    write(stage.context, "d/a.txt", "d/a.py", "d/sub/b.txt", "d/sub/keep.txt", "d/gone/x", "d/sub/c.py")
    stage.copy("d", to="/d", exclude=("**/*.txt", "!sub/keep.txt", "gone"))
    stage.copy("d/a.*", to="/w/", exclude=("*.txt",))
    stage.copy("d", to="/none", exclude=("*",))
    assert paths(stage.see()) == {
        *(b"d", b"d/a.py", b"d/sub", b"d/sub/keep.txt", b"d/sub/c.py", b"w", b"w/a.py", b"none")
    }


def test_link_looks_at_nothing_below(stage: Stage) -> None:
    below = stage.layer()
    below.chmod(0o711)
    write(below, "usr/bin/old", "dir/x")
    (below / "bin").symlink_to("usr/bin")
    (below / "file").write_text("file")
    write(stage.context, "a")
    stage.copy("a", to="/bin/a", link=True)
    stage.copy("a", to="/dir", link=True)
    stage.copy("a", to="/file/b", link=True)
    seen = stage.see()
    assert paths(seen) == {b"usr", b"usr/bin", b"usr/bin/old", b"bin", b"bin/a", b"dir", b"file", b"file/b"}
    assert seen[b"dir"].content == b"a"
    assert seen[b""].mode == 0o711


# -- here-documents, stages -----------------------------------------------------------------------------


def test_here_documents(stage: Stage) -> None:
    stage.copy(to="/etc/motd", files=(("EOF", b"hello\n"),))
    stage.copy(
        to="/web/", files=(("robots.txt", b"robots"), ("humans.txt", b"humans")), chown="5", chmod="600"
    )
    seen = stage.see()
    assert (seen[b"etc/motd"].content, seen[b"etc/motd"].mode, seen[b"etc/motd"].uid) == (
        b"hello\n",
        0o644,
        0,
    )
    assert (seen[b"web/humans.txt"].mode, seen[b"web/humans.txt"].uid) == (0o600, 5)
    assert paths(seen) >= {b"web/robots.txt", b"web/humans.txt"}
    with pytest.raises(BadRequest, match="no name"):
        stage.copy(to="/", files=(("..", b""),))


def test_from_a_stage_owners_are_kept(stage: Stage, other: Stage) -> None:
    below, above = other.layer(), other.layer()
    write(below, "app/hidden", "app/changed", "app/lib/x")
    os.chown(below / "app/lib/x", 10, 11)
    os.chown(below / "app/lib", 12, 13)
    write(above, "app/new")
    os.mknod(above / "app/hidden", 0o020000, 0)
    (above / "app/changed").write_text("after")
    os.link(below / "app/lib/x", below / "app/lib/y")
    (above / "latest").symlink_to("/app")
    os.setxattr(below / "app/lib/x", "user.note", b"kept")
    age(below / "app/lib/x")
    stage.copy_from(other, "/latest", to="/copy")
    seen = stage.see()
    assert paths(seen) == {
        *(b"copy", b"copy/changed", b"copy/new", b"copy/lib", b"copy/lib/x", b"copy/lib/y")
    }
    assert seen[b"copy/changed"].content == b"after"
    item = seen[b"copy/lib/x"]
    assert (item.uid, item.gid, item.mtime, item.names) == (10, 11, OLD, (b"copy/lib/x", b"copy/lib/y"))
    assert item.attributes == (("user.note", b"kept"),)
    assert (seen[b"copy/lib"].uid, seen[b"copy/lib"].gid) == (12, 13)
    assert (seen[b"copy"].uid, seen[b"copy"].gid) == (0, 0)


def test_from_a_stage_with_another_owner(stage: Stage, other: Stage) -> None:
    write(other.layer(), "app/x")
    os.chown(other.layers[0] / "app/x", 10, 11)
    stage.copy_from(other, "app", to="/app", chown="3:4")
    seen = stage.see()
    assert {(seen[path].uid, seen[path].gid) for path in (b"app", b"app/x")} == {(3, 4)}


def test_a_stage_does_not_lead_out(stage: Stage, other: Stage) -> None:
    outside = stage.layerfs.directory / "secret"
    outside.write_text("secret")
    (other.layer() / "link").symlink_to(outside)
    (other.layers[0] / "up").symlink_to("../../../../../../../.." + str(outside))
    for source in ("link", "up", "../secret", "/../../" + str(outside)):
        with pytest.raises(NotFound):
            stage.copy_from(other, source, to="/")


def test_from_a_stage_with_a_renamed_directory_and_metadata_alone(stage: Stage, other: Stage) -> None:
    below, above = other.layer(), other.layer()
    write(below, "old/inner/x", "old/data")
    (above / "new").mkdir()
    prefix = of_this_process().prefix.decode()
    os.setxattr(above / "new", f"{prefix}redirect", b"/old")
    os.mknod(above / "old", 0o020000, 0)
    with (above / "new/data").open("wb") as file:
        file.truncate(8)
    (above / "new/data").chmod(0o600)
    os.setxattr(above / "new/data", f"{prefix}metacopy", b"")
    stage.copy_from(other, "new", to="/n")
    seen = stage.see()
    assert (seen[b"n/inner/x"].content, seen[b"n/data"].content) == (b"old/inner/x", b"old/data")
    assert seen[b"n/data"].mode == 0o600
    assert seen[b"n/data"].attributes == ()


# -- WORKDIR ----------------------------------------------------------------------------------------------


def test_a_working_directory_is_made_for_the_user(stage: Stage) -> None:
    below = stage.layer()
    write(below, "etc/x", "usr/share/x")
    (below / "etc/passwd").write_text("app:x:20:21:::\n")
    (below / "srv").symlink_to("usr/share")
    assert copying.make_directory("/srv/app/code", "app", stage.stack, stage.layer())
    seen = stage.see()
    for path in (b"usr/share/app", b"usr/share/app/code"):
        assert (seen[path].mode, seen[path].uid, seen[path].gid) == (0o755, 20, 21)
    assert seen[b"usr/share"].uid == 0


def test_a_working_directory_that_is_there(stage: Stage) -> None:
    write(stage.layer(), "work/x")
    tree = stage.layerfs.directory / "unused"
    tree.mkdir()
    assert not copying.make_directory("/work", "7", stage.stack, tree)
    assert os.listdir(tree) == []
    with pytest.raises(BadRequest, match="/work/x is a file, not a directory"):
        copying.make_directory("/work/x", "", stage.stack, tree)


def test_a_working_directory_for_a_user_who_is_not_there(tmp_path: Path) -> None:
    assert copying.make_directory("/a", "app:staff", None, tmp_path)
    assert (tmp_path / "a").stat().st_uid == 0
    with pytest.raises(BadRequest, match="invalid owner"):
        copying.make_directory("/b", ":5", None, tmp_path)


def test_a_working_directory_from_scratch(tmp_path: Path) -> None:
    assert copying.make_directory("/a/b", "5:6", None, tmp_path)
    st = (tmp_path / "a/b").stat()
    assert (st.st_uid, st.st_gid) == (5, 6)


def test_a_stack_of_many_layers(stage: Stage) -> None:
    for number in range(150):
        write(stage.layer(), f"d/f{number}", "d/same")
    stack = stage.stack
    assert isinstance(stack, Stack)
    assert isinstance(stack.trees[0], Tree)
    write(stage.context, "c/f7", "c/new")
    stage.copy("c", to="/d")
    assert stage.see()[b"d/f7"].content == b"c/f7"
