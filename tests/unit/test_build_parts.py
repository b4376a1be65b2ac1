"""Parts of a build that need no mount: places to mount on, keys, histories, what clients are told."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from layerfs.build import keys, outcome, targets
from layerfs.build.outcome import Entry
from layerfs.build.progress import Classic, Quiet
from layerfs.build.workplace import workplace
from layerfs.errors import LayerfsError
from layerfs.host import mountcalls

_TIME = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a tree with a directory and links."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/link").symlink_to("/var/x/../file")
    (tmp_path / "out").symlink_to("../../../..")
    os.utime(tmp_path / "etc", ns=(10**18, 10**18))
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_what_is_missing_is_found_through_links(tree: int) -> None:
    found = targets.missing(tree, ["/etc", "/etc/hosts", "/a/b/c", "/etc/link", "/out/etc"])
    assert found.paths == [b"etc/hosts", b"a", b"a/b", b"a/b/c", b"var", b"var/file"]
    assert set(found.times) == {b"etc", b""}


def test_what_was_made_to_mount_on_goes_and_the_rest_stays(tree: int, tmp_path: Path) -> None:
    found = targets.missing(tree, ["/etc/hosts", "/a/b", "/c/d", "/e"])
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c/d").mkdir(parents=True)
    (tmp_path / "c/kept").touch()
    (tmp_path / "e").write_text("written to")
    (tmp_path / "etc/hosts").touch()
    targets.clear_away(tree, found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "e", "etc", "out"]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["kept"]
    assert (tmp_path / "etc").stat().st_mtime_ns == 10**18


def test_nothing_outside_is_touched_where_a_command_has_put_a_link(tree: int, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "hosts").touch()
    found = targets.missing(tree, ["/etc/hosts"])
    (tmp_path / "etc").rename(tmp_path / "moved")
    (tmp_path / "etc").symlink_to(outside)
    targets.clear_away(tree, found)
    assert (outside / "hosts").exists()


def test_keys_tell_apart_what_differs() -> None:
    base = {"words": ("a", "b"), "user": ""}
    found = {
        keys.key("RUN", None, **base),
        keys.key("RUN", "x", **base),
        keys.key("COPY", None, **base),
        keys.key("RUN", None, words=("a b",), user=""),
        keys.key("RUN", None, words=("a", "b"), user="0"),
    }
    assert len(found) == 5
    assert keys.key("RUN", None, user="", words=["a", "b"]) == keys.key("RUN", None, **base)


def test_a_history_without_times_of_its_own_is_always_the_same() -> None:
    later = _TIME + timedelta(days=1)
    entries = [Entry("ENV"), Entry("RUN", later, "layer"), Entry("CMD")]
    made = outcome.history(entries, before=_TIME, now=datetime.now(UTC), author="me", comment="c")
    assert [(it.created_by, it.created, it.empty_layer) for it in made] == [
        ("ENV", later, True), ("RUN", later, False), ("CMD", later, True)
    ]  # fmt: skip
    (alone,) = outcome.history([Entry("CMD")], before=_TIME, now=later, author="", comment="")
    assert alone.created == _TIME


def test_a_build_that_gets_no_private_place_leaves_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: bytes, options: bytes) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(mountcalls, "mount_tmpfs", refuse)
    with pytest.raises(LayerfsError, match="make a directory for the build"), workplace(root):
        pass
    assert list((tmp_path / "run" / "builds").iterdir()) == []


class _Sink:
    def __init__(self) -> None:
        self.said: list[Mapping[str, Any]] = []

    def put(self, fields: Mapping[str, Any], /) -> None:
        self.said.append(fields)

    def check(self) -> None:
        pass

    @property
    def text(self) -> str:
        return "".join(str(it["stream"]) for it in self.said)


def test_the_classic_words_are_of_one_stage_after_the_other() -> None:
    sink = _Sink()
    progress = Classic(sink)
    progress.planned({0: 2, 2: 1})
    late = progress.begin(2, "b", 1, 1, "FROM y")
    late.working()
    late.done("2" * 64)
    progress.end_stage(2)
    assert sink.text == ""
    first = progress.begin(0, "a", 1, 2, "FROM x")
    first.working()
    first.done("1" * 64)
    second = progress.begin(0, "a", 2, 2, "RUN x")
    second.working()
    second.output("hé".encode()[:2])
    second.output("hé\n".encode()[2:])
    assert sink.text.endswith("Step 2/3 : RUN x\nhé\n")
    second.done("3" * 64)
    progress.end_stage(0)
    assert sink.text == (
        "Step 1/3 : FROM x\n ---> 111111111111\nStep 2/3 : RUN x\nhé\n ---> 333333333333\n"
        "Step 3/3 : FROM y\n ---> 222222222222\n"
    )


def test_instructions_that_take_no_time_are_as_cached_as_what_follows() -> None:
    sink = _Sink()
    progress = Classic(sink)
    progress.planned({0: 5})
    for number, (text, cached) in enumerate(
        [("ENV", None), ("RUN a", True), ("ENV", None), ("RUN b", False)]
    ):
        step = progress.begin(0, "", number + 1, 5, text)
        if cached is False:
            step.working()
        step.done("1" * 64, cached=cached)
    progress.begin(0, "", 5, 5, "CMD").done("1" * 64, cached=None)
    progress.end_stage(0)
    using = [" ---> Using cache" in part for part in sink.text.split("Step ")[1:]]
    assert using == [True, True, False, False, False]


def test_a_stage_that_fails_is_told_of_at_once() -> None:
    sink = _Sink()
    progress = Classic(sink)
    progress.planned({0: 1, 1: 1})
    failing = progress.begin(1, "b", 1, 1, "RUN false")
    failing.working()
    failing.output(b"why\n", error=True)
    failing.failed()
    assert sink.text == "Step 2/2 : RUN false\n\x1b[91mwhy\n\x1b[0m"


def test_a_quiet_build_tells_all_when_it_fails() -> None:
    sink = _Sink()
    quiet = Quiet(sink)
    quiet.put({"stream": "a"})
    assert sink.said == []
    quiet.tell()
    assert sink.text == "a"


def test_what_waits_to_be_said_is_bounded() -> None:
    piece = b"x" * 65535 + b"\n"
    for quiet in (False, True):
        sink = _Sink()
        kept = Quiet(sink)
        progress = Classic(kept if quiet else sink)
        progress.planned({0: 1} if quiet else {1: 1, 0: 1})
        step = progress.begin(0, "a", 1, 1, "RUN yes")
        step.working()
        for _ in range(100):
            step.output(piece)
        step.output(b"the last\n")
        assert sink.text == ""
        step.failed()
        kept.tell()
        assert len(sink.text) < 2 << 20
        assert sink.text.startswith("[")
        assert sink.text.endswith("xx\nthe last\n")
