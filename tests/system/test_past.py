"""What was: which checkpoints there are, what each changed, files and directories as they were."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Layerfs
from tests.system.apirequests import engine

pytestmark = pytest.mark.root
NAME = "agent"


class Past:
    """A live mount of an image, five checkpoints long, and something written since."""

    def __init__(self, layerfs: Layerfs) -> None:
        self.layerfs = layerfs
        tree = layerfs.directory / "tree"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/passwd").write_text("root\n")
        (tree / "file").write_text("v0\n")
        (tree / "link").symlink_to("/etc/passwd")
        (tree / "out").symlink_to("../../../../../etc/passwd")
        (tree / "loop").symlink_to("loop")
        os.mkfifo(tree / "fifo")
        self.mnt = layerfs.directory / "mnt"
        self.mnt.mkdir()
        layerfs.ok("import", tree, "base:1")
        layerfs.ok("mount", "--image", "base:1", "--name", NAME, self.mnt)
        mnt = self.mnt
        self.steps = [
            self._step("added one", lambda: (mnt / "one").write_text("one\n")),
            self._step("changed file", lambda: (mnt / "file").write_text("v1\n")),
            self._step("renamed etc", lambda: (mnt / "etc").rename(mnt / "etc2")),
            self._step("renamed file", lambda: (mnt / "file").rename(mnt / "file2")),
            self._step("removed one", (mnt / "one").unlink),
        ]
        (mnt / "new").write_text("not sealed yet")

    def _step(self, message: str, change: Callable[[], object]) -> str:
        change()
        return self.layerfs.ok("checkpoint", "-m", message, NAME)

    def log(self, *arguments: str) -> list[dict[str, str]]:
        """Return the rows of `layerfs log`."""
        output = self.layerfs.ok("log", "--no-trunc", "--format", "json", *arguments)
        return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def past(shared_layerfs: Layerfs) -> Past:
    return Past(shared_layerfs)


def test_log_lists_the_checkpoints_newest_first_with_what_each_changed(past: Past) -> None:
    rows = past.log(NAME)
    assert [row["ID"] for row in rows[:-1]] == past.steps[::-1]
    numbers = [(row["Comment"], row["Added"], row["Changed"], row["Deleted"]) for row in rows]
    assert numbers == [
        ("removed one", "0", "0", "1"),
        ("renamed file", "1", "0", "1"),
        ("renamed etc", "2", "0", "1"),
        ("changed file", "0", "1", "0"),
        ("added one", "1", "0", "0"),
        ("", "7", "0", "0"),
    ]
    assert rows[-1]["Tags"] == "base:1"
    assert rows[3]["Size"] == "3B"
    assert [row["Parent"] for row in rows] == [*(row["ID"] for row in rows[1:]), ""]


def test_log_shows_only_as_many_as_wanted_and_the_same_a_second_time(past: Past) -> None:
    numbers = [(row["ID"], row["Added"], row["Size"]) for row in past.log(NAME)]
    assert [(row["ID"], row["Added"], row["Size"]) for row in past.log("-n", "2", NAME)] == numbers[:2]
    assert [(row["ID"], row["Added"], row["Size"]) for row in past.log("-n", "0", f"{NAME}~3")] == numbers[3:]


def test_log_of_a_path_follows_a_renamed_file(past: Past) -> None:
    rows = [(row["Kind"], row["Path"], row["Comment"]) for row in past.log(NAME, "/file2")]
    assert rows == [
        ("R", "/file -> /file2", "renamed file"),
        ("C", "/file", "changed file"),
        ("A", "/file", ""),
    ]


def test_log_of_a_path_follows_a_renamed_directory(past: Past) -> None:
    rows = [(row["Kind"], row["Path"]) for row in past.log(NAME, "etc2/passwd")]
    assert rows == [("R", "/etc/passwd -> /etc2/passwd"), ("A", "/etc/passwd")]


def test_log_of_a_path_that_was_removed(past: Past) -> None:
    assert [(row["Kind"], row["Comment"]) for row in past.log(NAME, "/one")] == [
        ("D", "removed one"),
        ("A", "added one"),
    ]


def test_cat_prints_a_file_as_it_was(past: Past) -> None:
    shown = {place: past.layerfs.ok("cat", place) for place in PLACES}
    assert shown == PLACES


PLACES = {
    f"{NAME}:/new": "not sealed yet",
    f"{NAME}:/file2": "v1",
    f"{NAME}~3:/file": "v1",
    f"{NAME}~4:/file": "v0",
    "base:1:/file": "v0",
    f"{NAME}:file2": "v1",
    f"{NAME}~3:/link": "root",
    f"{NAME}~3:/out": "root",  # of the tree, not of this machine
    f"{NAME}@{{now}}:/file2": "v1",
}


def test_ls_lists_a_directory_as_it_was(past: Past) -> None:
    layerfs = past.layerfs
    assert layerfs.ok("ls", f"{NAME}:/").split() == ["etc2", "fifo", "file2", "link", "loop", "new", "out"]
    then = ["etc", "fifo", "file", "link", "loop", "one", "out"]
    assert layerfs.ok("ls", f"{NAME}~3").split() == then
    assert layerfs.ok("ls", f"{past.steps[1][:16]}:/").split() == then
    assert layerfs.ok("ls", f"{NAME}~3:/etc").split() == ["passwd"]
    line = layerfs.ok("ls", "-l", f"{NAME}:/link").splitlines()[1]
    assert line.startswith("lrwxrwxrwx")
    assert line.endswith("link -> /etc/passwd")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("ls", "nothing"), "no mount, image or checkpoint is called nothing"),
        (("ls", f"{NAME}~99"), "its past is not that long"),
        (("ls", f"{NAME}@{{1990-01-01}}"), "all are younger than that"),
        (("ls", f"{NAME}@{{soon}}"), "invalid time 'soon'"),
        (("ls", "f" * 64), "no mount, image or checkpoint is called f"),
        (("ls", f"{NAME}:/nowhere"), "/nowhere is not in agent"),
        (("cat", f"{NAME}:/file2/x"), "not a directory"),
        (("cat", f"{NAME}:/loop"), "too many levels of symbolic links"),
        (("cat", f"{NAME}:/etc2"), "is a directory"),
        (("cat", f"{NAME}:/fifo"), "is no regular file"),
        (("log", NAME, "/nowhere"), "/nowhere was never there"),
    ],
)
def test_what_is_not_there_is_refused_with_one_line(
    past: Past, command: tuple[str, ...], message: str
) -> None:
    assert message in past.layerfs.refused(*command)


def test_a_mounts_own_socket_answers_for_it(past: Past) -> None:
    status, body = past.layerfs.ask(NAME, "GET", "/layerfs/log?n=1")
    assert status == 200
    assert [entry["Id"] for entry in json.loads(body)] == past.steps[:-2:-1]
    assert past.layerfs.ask(NAME, "GET", "/layerfs/cat?ref=~3&path=/file") == (200, b"v1\n")
    assert past.layerfs.ask(NAME, "GET", "/layerfs/log?n=x")[0] == 400


def test_times_mean_what_the_mount_stood_on_then_and_graph_shows_what_was_given_up(layerfs: Layerfs) -> None:
    tree, mnt = layerfs.directory / "tree", layerfs.directory / "mnt"
    tree.mkdir()
    mnt.mkdir()
    layerfs.ok("import", tree, "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    (mnt / "a").write_text("1")
    first = layerfs.ok("checkpoint", NAME)
    (mnt / "a").write_text("2")
    second = layerfs.ok("checkpoint", NAME)
    then = _moment_of(layerfs, second)
    layerfs.ok("rollback", NAME, first)
    (mnt / "a").write_text("3")
    third = layerfs.ok("checkpoint", NAME)
    assert layerfs.ok("cat", f"{NAME}@{{{then}}}:/a") == "2"
    assert layerfs.ok("cat", f"{NAME}@{{now}}:/a") == "3"
    lines = layerfs.ok("log", "--graph", NAME).splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["*", "| *", "|/", "*", "*"]
    assert third[:12] in lines[0]
    assert second[:12] in lines[1]
    assert first[:12] in lines[3]
    layerfs.ok("umount", NAME)
    assert layerfs.ok("cat", f"{NAME}:/a") == "3"


def _moment_of(layerfs: Layerfs, step: str) -> str:
    status, body = layerfs.ask(NAME, "GET", "/layerfs/log")
    assert status == 200
    return next(str(entry["Created"]) for entry in json.loads(body) if entry["Id"] == step)


def test_what_is_in_the_upper_of_a_mount_at_rest_is_read_too(layerfs: Layerfs, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    layerfs.ok("import", tmp_path / "tree", "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    (mnt / "big").write_bytes(b"0123456789abcdef" * 100_000)
    layerfs.ok("umount", NAME)
    assert layerfs.ok("cat", f"{NAME}:/big") == "0123456789abcdef" * 100_000
    assert layerfs.ok("ls", f"{NAME}~0") == ""


@pytest.mark.parametrize("with_engine", [False, True])
def test_names_that_are_not_utf_8(layerfs: Layerfs, tmp_path: Path, with_engine: bool) -> None:
    name = os.fsdecode(b"odd \xff\n=&?: name")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / name).write_text("odd")
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    layerfs.ok("import", tmp_path / "tree", "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    if with_engine:
        engine(layerfs)
    assert layerfs.ok("cat", f"base:/{name}") == "odd"
    assert layerfs.ok("log", "--format", "{{.Kind}}", NAME, f"/{name}") == "A"
    (mnt / name).write_text("even")
    layerfs.ok("restore", NAME, "base", f"/{name}")
    assert (mnt / name).read_text() == "odd"
    assert layerfs.ok("diff", NAME, "base") == ""
    assert "not UTF-8" in layerfs.refused("ls", name)
