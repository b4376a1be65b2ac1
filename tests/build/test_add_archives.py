"""ADD unpacks local archives by docker's rules, whatever is in them and whatever is there already."""

from __future__ import annotations

import os
import shutil
import stat

import pytest

from layerfs.build.sources import of_stack
from layerfs.errors import BadRequest, LayerfsError
from tests.build.archives import archive, compressed, directory, file, link
from tests.build.stages import Stage
from tests.build.test_copying import paths

pytestmark = pytest.mark.root


@pytest.mark.parametrize("program", ["", "gzip", "bzip2", "xz", "zstd"])
def test_archives_are_known_by_their_contents(stage: Stage, program: str) -> None:
    if program and shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    data = archive(directory("d", 0o750, uid=3, gid=4), file("d/f", b"inside", uid=5, mtime=1_500_000_000))
    (stage.context / "odd.name").write_bytes(compressed(data, program) if program else data)
    stage.copy("odd.name", to="/into", word="ADD")
    seen = stage.see()
    assert paths(seen) == {b"into", b"into/d", b"into/d/f"}
    assert (seen[b"into/d"].mode, seen[b"into/d"].uid, seen[b"into/d"].gid) == (0o750, 3, 4)
    found = seen[b"into/d/f"]
    assert (found.content, found.uid, found.mtime) == (b"inside", 5, 1_500_000_000 * 10**9)


@pytest.mark.parametrize(
    "data", [b"", b"text\n", archive(), b"\x1f\x8bnothing", bytes(1024), b"PK\x03\x04" + bytes(600)]
)
def test_what_is_no_archive_is_copied(stage: Stage, data: bytes) -> None:
    (stage.context / "x.tar.gz").write_bytes(data)
    stage.copy("x.tar.gz", to="/d/", word="ADD")
    assert stage.see()[b"d/x.tar.gz"].content == data


def test_copy_and_an_add_that_must_not_unpack(stage: Stage) -> None:
    data = archive(file("f"))
    (stage.context / "x.tar").write_bytes(data)
    stage.copy("x.tar", to="/copied")
    stage.copy("x.tar", to="/added", word="ADD", unpack=False)
    seen = stage.see()
    assert seen[b"copied"].content == seen[b"added"].content == data


def test_members_take_the_place_of_what_is_there(stage: Stage) -> None:
    below = stage.layer()
    (below / "dir/old").mkdir(parents=True)
    (below / "merged").mkdir()
    (below / "merged/kept").write_text("kept")
    (below / "file").write_text("file")
    (below / "link").symlink_to("merged")
    (stage.context / "x.tar").write_bytes(
        archive(
            file("dir", b"now a file"),
            directory("merged", 0o700, uid=9),
            file("merged/new", b"new"),
            directory("file"),
            file("file/inner", b"inner"),
            directory("link"),
            file("link/inner", b"inner"),
        )
    )
    stage.copy("x.tar", to="/", word="ADD")
    seen = stage.see()
    assert paths(seen) == {
        *(b"dir", b"merged", b"merged/kept", b"merged/new"),
        *(b"file", b"file/inner", b"link", b"link/inner"),
    }
    assert seen[b"dir"].content == b"now a file"
    assert (seen[b"merged"].mode, seen[b"merged"].uid) == (0o700, 9)
    assert stat.S_ISDIR(seen[b"link"].type)


def test_directories_that_an_archive_does_not_mention(stage: Stage) -> None:
    below = stage.layer()
    (below / "usr/lib").mkdir(parents=True)
    (below / "usr").chmod(0o711)
    (below / "lib").symlink_to("usr/lib")
    (stage.context / "x.tar").write_bytes(archive(file("usr/share/x"), file("lib/y"), file("/abs/z")))
    stage.copy("x.tar", to="/", word="ADD")
    seen = stage.see()
    assert paths(seen) == {
        *(b"usr", b"usr/lib", b"usr/lib/y", b"usr/share", b"usr/share/x", b"lib", b"abs", b"abs/z")
    }
    assert (seen[b"usr"].mode, seen[b"usr/share"].mode) == (0o711, 0o755)
    assert stat.S_ISLNK(seen[b"lib"].type)


def test_one_archive_over_another(stage: Stage) -> None:
    below = stage.layer()
    (below / "d/x").mkdir(parents=True)
    (below / "d/x/hidden").write_text("hidden")
    (stage.context / "1.tar").write_bytes(archive(file("x", b"a file"), directory("y"), file("y/1")))
    (stage.context / "2.tar").write_bytes(archive(directory("x"), file("x/new"), file("y", b"a file")))
    stage.copy("1.tar", "2.tar", to="/d/", word="ADD")
    seen = stage.see()
    assert paths(seen) == {b"d", b"d/x", b"d/x/new", b"d/y"}
    assert seen[b"d/y"].content == b"a file"


def test_owners_hard_links_and_names_like_whiteouts(stage: Stage) -> None:
    (stage.context / "x.tar").write_bytes(
        archive(
            file("a", b"a", uid=1000),
            link("b", "/a", hard=True),
            file(".wh.a", b"not deleted"),
            link("s", "/etc/passwd"),
            ({"name": "p", "pax_headers": {"SCHILY.xattr.trusted.overlay.opaque": "y"}}, b"p"),
        )
    )
    stage.copy("x.tar", to="/d/", word="ADD", chown="7:8")
    assert stage.stack is not None
    with of_stack(stage.stack, "the stage") as source:
        inside = source.root().enter(b"d")
        items = {item.name: item.st for item in inside.items()}
        assert set(items) == {b".wh.a", b"a", b"b", b"p", b"s"}
        assert {(st.st_uid, st.st_gid) for st in items.values()} == {(7, 8)}
        assert items[b"a"].st_ino == items[b"b"].st_ino
        assert inside.xattrs(b"p", -1) == {b"trusted.overlay.opaque": b"y"}


@pytest.mark.parametrize(
    "members",
    [
        (file("../x"),),
        (file("a/../../x"),),
        (link("out", "/"), file("out/x")),
        (link("x", "../../etc/passwd", hard=True),),
    ],
)
def test_hostile_archives_are_refused(stage: Stage, members: tuple[object, ...]) -> None:
    (stage.context / "x.tar").write_bytes(archive(*members))  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=r"cannot unpack x\.tar: its member"):
        stage.copy("x.tar", to="/d/", word="ADD")
    assert os.listdir(stage.scratch) == []


@pytest.mark.parametrize("program", ["", "gzip", "xz", "zstd"])
def test_damaged_archives_are_refused(stage: Stage, program: str) -> None:
    data = archive(file("a", os.urandom(5000)), file("b", os.urandom(200_000)))
    data = compressed(data, program) if program else data
    (stage.context / "x.tar").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(LayerfsError, match=r"cannot unpack x\.tar: "):
        stage.copy("x.tar", to="/d/", word="ADD")
    assert os.listdir(stage.scratch) == []


def test_times_of_members_are_bounded(stage: Stage) -> None:
    (stage.context / "x.tar").write_bytes(
        archive(directory("d", mtime=2_000_000_000), file("d/f", mtime=2_000_000_000))
    )
    stage.copy("x.tar", to="/", word="ADD", epoch=1_600_000_000)
    seen = stage.see()
    assert {item.mtime for item in seen.values()} == {1_600_000_000 * 10**9}
