"""`layerfs load` and `layerfs save`: their words, their ends, and what is left when they are killed."""

from __future__ import annotations

import json
import os
import pty
import random
import resource
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Layerfs, wait_until
from tests.system.oci_support import Images, another, assert_same, view

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def images(shared_layerfs: Layerfs) -> Images:
    """A store with an image of three layers."""
    return Images(shared_layerfs, "-o", "metacopy=on")


@pytest.fixture
def fresh(images: Images, tmp_path: Path) -> Layerfs:
    """The command line on an empty store."""
    return another(images.layerfs, tmp_path.name)


def piped(layerfs: Layerfs, *words: str, given: bytes | None = None) -> bytes:
    """Run a command between pipes; return what it writes."""
    done = subprocess.run(
        [*layerfs.words, *words],
        env=layerfs.environment,
        input=given,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_everything_comes_back(images: Images, fresh: Layerfs, tmp_path: Path, form: str) -> None:
    images.layerfs.ok("save", "all:2", "all:0", "-o", tmp_path / "saved", "--format", form)
    assert fresh.ok("load", tmp_path / "saved").splitlines() == ["Loaded image: all:2", "Loaded image: all:0"]
    assert_same(images.expected, view(fresh, "all:2", tmp_path.name))
    fresh.ok("verify", "all:2")
    mine, theirs = (command.ok("history", "all:2", "--format", "json") for command in (images.layerfs, fresh))
    columns = ("CreatedBy", "Comment", "CreatedAt")  # sizes grow where a renamed directory is written out
    rows = [[json.loads(line) for line in text.splitlines()] for text in (mine, theirs)]
    assert [[row[key] for key in columns] for row in rows[0]] == [
        [row[key] for key in columns] for row in rows[1]
    ]
    assert [row["ID"] for row in rows[1][1:]] == ["<missing>"] * 2


def test_pipes(images: Images, fresh: Layerfs, tmp_path: Path) -> None:
    data = piped(images.layerfs, "save", "all:1")
    assert data == piped(images.layerfs, "save", "-o", "-", "all:1")
    assert piped(fresh, "load", given=data) == b"Loaded image: all:1\n"
    assert (
        piped(fresh, "load", "-", "-t", "x", "-t", "y:2", given=data)
        == b"Loaded image: x:latest\nLoaded image: y:2\n"
    )
    (tmp_path / "x.tar").write_bytes(data)
    with (tmp_path / "x.tar").open("rb") as file:
        done = subprocess.run(
            [*fresh.words, "load", "-q"], env=fresh.environment, stdin=file, capture_output=True, check=True
        )
    assert done.stdout == b"Loaded image: all:1\n"
    assert fresh.ok("load", "--input", tmp_path / "x.tar") == "Loaded image: all:1"
    assert os.listdir(fresh.root / "layers") != []
    assert not [path for path in fresh.root.iterdir() if path.name.startswith("tmp")]


def test_images_by_id(images: Images, fresh: Layerfs, tmp_path: Path) -> None:
    identity = json.loads(images.layerfs.ok("inspect", "all:1"))[0]["Id"]
    images.layerfs.ok("save", identity, "-o", tmp_path / "x.tar")
    line = fresh.ok("load", tmp_path / "x.tar")
    assert line.startswith("Loaded image ID: sha256:")
    assert json.loads(fresh.ok("inspect", line.rpartition(" ")[2]))[0]["RepoTags"] == []


def test_wrong_words(images: Images, fresh: Layerfs, tmp_path: Path) -> None:
    command = images.layerfs
    assert "no such file" in fresh.refused("load", tmp_path / "none")
    assert "not an image" in fresh.refused("load", tmp_path)
    assert "no size" in fresh.refused("load", "--max-size", "much", tmp_path, status=2)
    assert "once" in fresh.refused("load", "-i", "x", "y", status=2)
    assert "platform" in fresh.refused("load", "--platform", "a/b/c/d", tmp_path)
    assert "no such image" in command.refused("save", "none", "-o", tmp_path / "x")
    assert "--output" in command.refused("save", "all:1", "--format", "oci-dir", status=2)
    assert "no store" in fresh.refused("save", "x", "-o", tmp_path / "x") or fresh.root.exists()
    command.ok("save", "all:1", "-o", tmp_path / "x.tar")
    assert "--max-files" in fresh.refused("load", "--max-files", "3", tmp_path / "x.tar")
    assert "--max-size" in fresh.refused("load", "--max-size", "1m", tmp_path / "x.tar")
    assert fresh.ok("images", "-q") == ""
    assert os.listdir(fresh.root / "layers") == []


def on_terminal(layerfs: Layerfs, *words: str | Path) -> tuple[int, str]:
    """Run a command on a terminal; return its exit status and all that it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(layerfs.words[0], [*layerfs.words, *map(str, words)], layerfs.environment)
    shown = b""
    with suppress(OSError):  # EIO: nobody has it open any more
        while data := os.read(terminal, 4096):
            shown += data
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_terminals(images: Images, fresh: Layerfs, tmp_path: Path) -> None:
    assert on_terminal(images.layerfs, "save", "all:1") == (
        2,
        "layerfs: an archive is not for a terminal: use --output, or a pipe\r\n",
    )
    status, shown = on_terminal(fresh, "load")
    assert (status, "send an archive to standard input" in shown) == (2, True)
    images.layerfs.ok("save", "all:1", "-o", tmp_path / "x.tar")
    status, shown = on_terminal(fresh, "load", tmp_path / "x.tar")
    assert status == 0
    assert "\x1b[Kloading " in shown
    assert shown.endswith("\r\x1b[KLoaded image: all:1\r\n")


@pytest.fixture
def large(tmp_path: Path, layerfs: Layerfs) -> Path:
    """An archive of an image with three layers, two of them of 40 MB."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(10):
        (tree / str(number)).write_bytes(random.Random(number).randbytes(1 << 20) * 4)
    layerfs.ok("import", tree, "large")
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    layerfs.ok("mount", "--image", "large", "--name", "m", mnt)
    (mnt / "small").touch()
    layerfs.ok("commit", "m", "larger")
    for number in range(10):
        (mnt / f"new{number}").write_bytes(random.Random(number + 100).randbytes(1 << 20) * 4)
    layerfs.ok("commit", "m", "largest")
    layerfs.ok("rm", "-f", "m")
    layerfs.ok("save", "largest", "-o", tmp_path / "large.tar")
    return tmp_path / "large.tar"


def tidy(layerfs: Layerfs) -> None:
    """Have the store put in order, as commands do that add to it."""
    done = subprocess.run(
        [*layerfs.words, "import", "-", "x"],
        env=layerfs.environment,
        input=bytes(1024),
        capture_output=True,
        check=True,
    )
    assert done.stdout
    layerfs.ok("rmi", "x")


def test_killed_at_any_moment(large: Path, layerfs: Layerfs, tmp_path: Path) -> None:
    """The store has the whole image or nothing of it; no process goes on, and no directory stays."""
    other = another(layerfs)
    tidy(other)
    started = time.monotonic()
    another(layerfs, "timed").ok("load", large)
    took = time.monotonic() - started
    chance = random.Random(5)
    for attempt in range(4):
        with subprocess.Popen(
            [*other.words, "load", large],
            env=other.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(took * (0.2 + chance.random() * 0.8))
            process.send_signal(signal.SIGKILL if attempt % 3 else signal.SIGINT)
        wait_until(lambda: not other.processes())
        if loaded := other.ok("images", "-q"):
            other.ok("verify", "largest")
            other.ok("rmi", loaded)
        tidy(other)
        assert os.listdir(other.root / "layers") == []
    assert other.ok("load", large) == "Loaded image: largest:latest"


def test_memory_stays_flat(large: Path, layerfs: Layerfs, tmp_path: Path) -> None:
    """Loading and saving 80 MB takes less than that, however it is compressed."""
    layerfs.ok("save", "largest", "-o", tmp_path / "packed.tar", "--format", "oci-archive")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    other = another(layerfs)
    other.ok("load", tmp_path / "packed.tar")
    other.ok("save", "largest", "-o", tmp_path / "again.tar", "--format", "oci-archive")
    other.ok("save", "largest", "-o", tmp_path / "plain.tar")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 150_000)  # kB


def test_a_full_disk(large: Path, layerfs: Layerfs, small: Path) -> None:
    other = another(layerfs)
    other.environment["LAYERFS_ROOT"] = str(small / "store")
    assert "No space left" in other.refused("load", large)
    assert other.ok("images", "-q") == ""
    assert os.listdir(small / "store/layers") == []
    for form in ("docker-archive", "oci-archive"):
        line = layerfs.refused("save", "largest", "-o", small / "x.tar", "--format", form)
        assert "No space left" in line
    assert [path.name for path in small.iterdir() if "x.tar" in path.name] == []
