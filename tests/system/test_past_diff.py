"""What differs between any two trees there were: held against plain copies, and against git."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Layerfs
from tests.system.programs import needs

pytestmark = pytest.mark.root
NAME = "agent"


@pytest.fixture
def mnt(layerfs: Layerfs, tmp_path: Path) -> Path:
    """A live mount with a few files below."""
    tree, mnt = tmp_path / "tree", tmp_path / "mnt"
    (tree / "d/e").mkdir(parents=True)
    mnt.mkdir()
    for number in range(6):
        (tree / f"d/f{number}").write_text(f"line one\nline two\n{number}\n")
        (tree / f"d/e/g{number}").write_text(f"{number}")
    layerfs.ok("import", tree, "base")
    layerfs.ok("mount", "--image", "base", "--name", NAME, mnt)
    return mnt


def plain(tree: Path) -> dict[str, tuple[object, ...]]:
    """Return what counts in *tree*, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for top, directories, files in os.walk(tree):
        for name in (*directories, *files):
            path = Path(top, name)
            st = path.lstat()
            what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            found["/" + str(path.relative_to(tree))] = (st.st_mode, st.st_uid, what)
    return found


def differences(one: Path, other: Path) -> set[str]:
    old, new = plain(one), plain(other)
    return (
        {f"D {path}" for path in old.keys() - new.keys()}
        | {f"A {path}" for path in new.keys() - old.keys()}
        | {f"C {path}" for path in old.keys() & new.keys() if old[path] != new[path]}
    )


def change(mnt: Path, chance: random.Random) -> None:
    """Do something at random to a tree."""
    entries = [Path(top, name) for top, ds, fs in os.walk(mnt) for name in (*ds, *fs)]
    path = chance.choice(entries) if entries else mnt / "x"
    directories = [mnt, *(entry for entry in entries if entry.is_dir() and not entry.is_symlink())]
    new = chance.choice(directories) / f"n{chance.randrange(20)}"
    kind = chance.randrange(7)
    if kind == 0 and path.is_file() and not path.is_symlink():
        path.write_text(str(chance.randrange(3)))
    elif kind == 1 and not os.path.lexists(new):
        new.write_text(f"new {chance.randrange(5)}\n")
    elif kind == 2 and not os.path.lexists(new):
        new.mkdir()
    elif kind == 3 and not new.is_relative_to(path) and not os.path.lexists(new) and path.exists():
        path.rename(new)
    elif kind == 4 and path.exists():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    elif kind == 5 and path.exists() and not path.is_symlink():
        path.chmod(chance.choice((0o700, 0o755, 0o750)))
    elif kind == 6 and not os.path.lexists(new):
        new.symlink_to("somewhere")


def test_any_two_checkpoints_differ_as_their_copies_do(layerfs: Layerfs, mnt: Path, tmp_path: Path) -> None:
    seed = 7
    chance = random.Random(seed)
    copies: dict[str, Path] = {}
    for number in range(6):
        for _ in range(15):
            change(mnt, chance)
        step = layerfs.ok("checkpoint", NAME)
        copies[step] = tmp_path / f"copy{number}"
        shutil.copytree(mnt, copies[step], symlinks=True)
        if number == 3:
            layerfs.ok("rollback", NAME, list(copies)[1])
    for _ in range(8):
        change(mnt, chance)
    copies[NAME] = mnt
    pairs = [(one, other) for one in copies for other in copies]
    for one, other in chance.sample(pairs, 14):
        told = layerfs.ok("diff", one, other).splitlines()
        assert set(told) == differences(copies[one], copies[other]), (seed, one, other)
        assert len(told) == len(set(told))


@needs("git")
def test_a_patch_makes_one_tree_of_the_other_and_stat_is_gits(
    layerfs: Layerfs, mnt: Path, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    shutil.copytree(mnt, before, symlinks=True)
    step = layerfs.ok("checkpoint", NAME)
    (mnt / "d/f0").write_text("line one\nline 2\n0\nmore\n")
    (mnt / "d/f1").unlink()
    (mnt / "d/f2").rename(mnt / 'd/ü "f\\2')
    (mnt / "d/e/g0").write_text("no newline at the end, still")
    (mnt / "d/f3").chmod(0o755)
    (mnt / "new/deeper").mkdir(parents=True)
    (mnt / "new/deeper/file").write_text("a\nb\n")
    (mnt / "new/link").symlink_to("deeper/file")
    patch = layerfs.ok("diff", step, NAME, "--patch") + "\n"
    (tmp_path / "patch").write_text(patch)
    subprocess.run(["git", "apply", "-p1", tmp_path / "patch"], cwd=before, check=True)
    assert plain(before) == plain(mnt)
    expected = subprocess.run(
        ["git", "apply", "--stat", tmp_path / "patch"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    told = layerfs.ok("diff", step, NAME, "--stat").splitlines()
    assert told[-1] == expected[-1]
    assert any(line.startswith(" d/f0 ") and line.endswith("| 3 ++-") for line in told)
    assert layerfs.ok("diff", NAME, "--patch") + "\n" == patch
    assert layerfs.ok("diff", f"{NAME}~0", "--patch", "/d/f0").count("diff --git") == 1


def test_binary_and_long_files_are_said_to_be_so(layerfs: Layerfs, mnt: Path) -> None:
    (mnt / "binary").write_bytes(b"\0" * 10)
    (mnt / "long").write_text("x" * 2_000_000)
    layerfs.ok("checkpoint", NAME)
    (mnt / "binary").write_bytes(b"\0" * 20)
    (mnt / "long").write_text("y" * 2_000_000)
    lines = layerfs.ok("diff", NAME, "--patch").splitlines()
    assert "Binary files a/binary and b/binary differ" in lines
    assert "Large files a/long and b/long differ" in lines
    assert layerfs.ok("diff", NAME, "--stat").splitlines()[0] == " binary | Bin 10 -> 20 bytes"


def test_diff_of_one_mount_is_dockers_as_before(layerfs: Layerfs, mnt: Path) -> None:
    (mnt / "d/f1").unlink()
    (mnt / "d/new").write_text("x")
    assert layerfs.ok("diff", NAME).splitlines() == ["C /d", "D /d/f1", "A /d/new"]
    assert layerfs.ok("diff", str(mnt)).splitlines() == ["C /d", "D /d/f1", "A /d/new"]
    assert layerfs.ok("diff", f"{NAME}~0").splitlines() == ["D /d/f1", "A /d/new"]
    assert layerfs.ok("diff", NAME, "/d/new").splitlines() == ["A /d/new"]
    assert layerfs.ok("diff", "base", NAME, "--format", "{{.Kind}}").splitlines() == ["D", "A"]
    assert layerfs.ok("diff", NAME, NAME) == ""


def test_what_cannot_be_compared_is_refused(layerfs: Layerfs, mnt: Path) -> None:
    assert "neither in agent~0 nor in agent" in layerfs.refused("diff", NAME, "/nowhere")
    assert "no mount, image or checkpoint is called other" in layerfs.refused("diff", NAME, "other")
    assert layerfs.ask(NAME, "GET", "/layerfs/diff?a=~0&form=x")[0] == 400
