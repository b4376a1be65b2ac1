"""What COPY refuses, and where it does not lead."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from layerfs.build import context, copying
from layerfs.build.copying import Job
from layerfs.errors import BadRequest, LayerfsError, NoSpace, NotFound
from layerfs.union import syscalls
from tests.build.stages import Stage
from tests.build.test_copying import paths

pytestmark = pytest.mark.root


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


def test_links_that_come_while_it_copies_do_not_lead_out(stage: Stage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for number in range(20):
        (outside / f"f{number}").write_text("secret")
    inside = stage.context / "d/swapped"
    inside.mkdir(parents=True)
    for number in range(20):
        (inside / f"f{number}").write_text("inside")
    os.symlink(outside, stage.context / "d/other")
    ended = threading.Event()

    def swap() -> None:
        first, second = (os.fsencode(stage.context / "d" / name) for name in ("swapped", "other"))
        here = os.open("/", os.O_PATH)
        while not ended.is_set():
            syscalls.renameat2(here, first, here, second, syscalls.RENAME_EXCHANGE)
        os.close(here)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for number in range(100):
            with suppress(LayerfsError):
                stage.copy("d", "d/swapped", "d/sw*", to=f"/x{number}/")
    finally:
        ended.set()
        swapper.join()
    copies = [path for layer in stage.layers for path in layer.rglob("f*") if not path.is_symlink()]
    assert copies
    assert {path.read_text() for path in copies if path.is_file()} == {"inside"}


def test_a_layer_is_not_copied_into_itself(stage: Stage) -> None:
    """The store may lie in the context."""
    stage.directory = stage.context / "store"
    stage.directory.mkdir()
    with pytest.raises(BadRequest, match="the build context contains the store"):
        stage.copy(".", to="/app/")
    (stage.context / ".dockerignore").write_text("store")
    stage.copy(".", to="/app/")
    assert paths(stage.see()) >= {b"app/Dockerfile", b"app/.dockerignore"}


def test_a_full_disk(stage: Stage, small: Path) -> None:
    (stage.context / "d").mkdir()
    for number in range(40):
        (stage.context / f"d/f{number}").write_bytes(os.urandom(1 << 20))
    with context.from_directory(stage.context) as opened:
        for job in (Job(sources=("d",), destination="/"), Job(sources=("d/f1",), destination="/x/")):
            with copying.select(job, opened.source, scratch=stage.scratch) as selection:
                tree = small / f"layer{len(job.destination)}"
                tree.mkdir()
                with pytest.raises(NoSpace) as caught:
                    copying.write(selection, None, tree, scratch=stage.scratch)
                assert "\n" not in str(caught.value)


def test_a_check_stops_everything(stage: Stage) -> None:
    class Stopped(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stopped

    (stage.context / "d/a/b/c/d").mkdir(parents=True)
    with (stage.context / "d/large").open("wb") as large:
        large.write(os.urandom(5 << 20))
        large.seek(1 << 30)
        large.write(b"end")
    before = len(os.listdir("/proc/self/fd"))
    for source in ("d", "d/large"):
        with context.from_directory(stage.context) as opened:
            job = Job(sources=(source,), destination="/x/")
            with copying.select(job, opened.source, scratch=stage.scratch, check=check) as selection:
                calls = 0
                with pytest.raises(Stopped):
                    selection.digest()
                calls = 0
                with pytest.raises(Stopped):
                    copying.write(selection, stage.stack, stage.layer(), scratch=stage.scratch, check=check)
    assert len(os.listdir("/proc/self/fd")) == before
