"""Whose marks a mount obeys: what an ordinary user writes on files of a layer is data to a mount of root."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Layerfs, Stack, as_user, detach, errno_of

pytestmark = pytest.mark.root
ALICE = 4001
PREFIXES = ("user.overlay.", "user.fuseoverlayfs.")
USERXATTR = ("-o", "userxattr")


@pytest.fixture(params=["extension", "plain"])
def hers(request: pytest.FixtureRequest, layerfs: Layerfs) -> Stack:
    """A stack whose upper lower layer is Alice's, over one of root's with files that are not for her."""
    if request.param == "plain":
        layerfs.environment["LAYERFS_EXTENSION"] = "0"
    stack = Stack(layerfs)
    (stack.bottom / "secret").write_text("root's secret")
    (stack.bottom / "secret").chmod(0o600)
    (stack.bottom / "closed").mkdir(0o700)
    (stack.bottom / "closed/inside").write_text("inside")
    (stack.bottom / "dir").mkdir()
    (stack.bottom / "dir/inner").write_text("inner")
    for path in (stack.top, stack.upper):
        path.chmod(0o755)
    os.chown(stack.top, ALICE, ALICE)
    return stack


def marks(path: Path, **values: bytes) -> None:
    """Have Alice set private attributes, below both prefixes, on a file of hers."""

    def set_them() -> None:
        for prefix in PREFIXES:
            for name, value in values.items():
                os.setxattr(path.name, prefix + name.replace("_", "."), value)

    assert as_user(ALICE, set_them, where=path.parent) == 0


def made(path: Path, **values: bytes) -> Path:
    """Have Alice make a file of 13 zeros, with marks."""
    assert as_user(ALICE, lambda: Path(path.name).write_bytes(bytes(13)), where=path.parent) == 0
    marks(path, **values)
    return path


def made_directory(path: Path, **values: bytes) -> Path:
    """Have Alice make a directory with marks."""
    assert as_user(ALICE, lambda: os.mkdir(path.name), where=path.parent) == 0
    marks(path, **values)
    return path


def shown(path: Path) -> set[str]:
    return {name for name in os.listxattr(path) if name.startswith(PREFIXES)}


def everything_is_as_if_unmarked(mnt: Path) -> None:
    assert (mnt / "stolen").read_bytes() == (mnt / "named").read_bytes() == bytes(13)
    assert os.listdir(mnt / "way") == os.listdir(mnt / "nowhere") == []
    assert sorted(os.listdir(mnt / "dir")) == ["gone", "inner"]
    assert (mnt / "dir/gone").read_bytes() == b""
    one, two = (mnt / "one").stat(), (mnt / "two").stat()
    assert one.st_ino != two.st_ino
    assert (mnt / "one").read_bytes() == bytes(13)
    assert as_user(ALICE, lambda: Path("closed/inside").read_bytes(), where=mnt) == errno.EACCES
    for name, attributes in (
        ("stolen", {"metacopy", "redirect"}),
        ("way", {"redirect"}),
        ("dir", {"opaque"}),
        ("one", {"layerfs.ino"}),
        ("dir/gone", {"whiteout"}),
    ):
        assert shown(mnt / name) == {prefix + attribute for prefix in PREFIXES for attribute in attributes}
        for attribute in shown(mnt / name):
            assert os.getxattr(mnt / name, attribute) is not None


def test_what_a_user_writes_on_files_of_a_layer_is_data(hers: Stack) -> None:
    made(hers.top / "stolen", metacopy=b"", redirect=b"/secret")
    made(hers.top / "named", metacopy=b"")
    made_directory(hers.top / "way", redirect=b"/closed")
    made_directory(hers.top / "nowhere", redirect=b"/../etc")
    made_directory(hers.top / "dir", opaque=b"x")
    (hers.top / "dir/gone").touch()
    os.chown(hers.top / "dir/gone", ALICE, ALICE)
    marks(hers.top / "dir/gone", whiteout=b"")
    for name in ("one", "two"):
        made(hers.top / name, layerfs_ino=b"77")
    mnt = hers.mount()
    everything_is_as_if_unmarked(mnt)
    for name in ("stolen", "way", "dir", "dir/gone", "one"):  # copy them up
        (mnt / name).chmod(0o755)
    everything_is_as_if_unmarked(mnt)
    everything_is_as_if_unmarked(hers.remount())
    assert os.getxattr(hers.upper / "way", "user.overlay.redirect") == b"/closed"
    hers.commit()
    everything_is_as_if_unmarked(hers.mnt)
    everything_is_as_if_unmarked(hers.remount())


def test_a_user_makes_nothing_vanish(hers: Stack) -> None:
    made_directory(hers.top / "dir", opaque=b"y")
    mnt = hers.mount()
    assert os.listdir(mnt / "dir") == ["inner"]
    (mnt / "dir/new").touch()
    assert sorted(os.listdir(hers.remount() / "dir")) == ["inner", "new"]


def test_what_is_set_on_the_mount_is_stored_as_it_is(hers: Stack) -> None:
    mnt = hers.mount()
    for prefix in PREFIXES:
        os.setxattr(mnt / "dir", prefix + "opaque", b"y")
    for view in (mnt, hers.remount()):
        assert shown(view / "dir") == {prefix + "opaque" for prefix in PREFIXES}
        assert os.listdir(view / "dir") == ["inner"]
    assert shown(hers.upper / "dir") == {prefix + "opaque" for prefix in PREFIXES}


class TestWithUserxattr:
    """A person who says `-o userxattr` wants `user.` marks read, and nobody gets to read more by them."""

    @pytest.fixture
    def kernel(self, hers: Stack) -> Path:
        """The kernel's overlayfs of the same layers, with the same option."""
        place, upper, work = (hers.directory / f"kernel-{name}" for name in ("mnt", "upper", "work"))
        for path in (place, upper, work):
            path.mkdir()
        upper.chmod(0o755)
        layers = f"lowerdir={hers.top}:{hers.bottom},upperdir={upper},workdir={work},userxattr"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", place], check=True, timeout=20)
        return place

    @pytest.fixture(autouse=True)
    def her_marks(self, hers: Stack) -> None:
        """Marks of Alice's that lead where she may not go, and some that hide."""
        made(hers.top / "stolen", metacopy=b"", redirect=b"/secret")
        made(hers.top / "secret", metacopy=b"")
        made_directory(hers.top / "way", redirect=b"/closed")
        made_directory(hers.top / "dir", opaque=b"y")
        (hers.bottom / "old").mkdir()
        (hers.bottom / "old/file").touch()

    def test_it_answers_as_the_kernel_does(self, hers: Stack, kernel: Path) -> None:
        mnt = hers.mount(*USERXATTR)
        try:
            for view in (mnt, kernel):
                assert errno_of(lambda v=view: (v / "stolen").read_bytes()) == errno.EPERM  # type: ignore[misc]
                assert errno_of(lambda v=view: (v / "secret").read_bytes()) == errno.EPERM  # type: ignore[misc]
                assert errno_of(lambda v=view: os.listdir(v / "way")) == errno.EPERM  # type: ignore[misc]
                assert {"dir", "secret", "stolen", "way"} <= set(os.listdir(view))
                assert os.listdir(view / "dir") == []
                assert os.listxattr(view / "dir") in ([], ["user.fuseoverlayfs.opaque"])
                assert errno_of(lambda v=view: os.rename(v / "old", v / "new")) == errno.EXDEV  # type: ignore[misc]
                os.setxattr(view / "old", "trusted.overlay.opaque", b"y")
                os.setxattr(view / "old", "user.overlay.opaque", b"y")
                assert sorted(os.listxattr(view / "old")) == ["trusted.overlay.opaque", "user.overlay.opaque"]
                assert os.listdir(view / "old") == ["file"]
        finally:
            detach(kernel)
        for upper in (hers.upper, hers.directory / "kernel-upper"):
            assert {"trusted.overlay.opaque", "user.overlay.overlay.opaque"} <= set(
                os.listxattr(upper / "old")
            )
        assert os.listdir(hers.remount() / "old") == ["file"]

    def test_a_layer_of_rootless_fuse_overlayfs_is_read(self, hers: Stack) -> None:
        os.removexattr(hers.top / "dir", "user.overlay.opaque")
        assert os.listdir(hers.mount(*USERXATTR) / "dir") == []

    def test_a_commit_of_it_is_read_in_the_same_way(self, hers: Stack) -> None:
        (hers.upper / "leads").mkdir()  # in the upper before the mount: not by layerfs
        os.setxattr(hers.upper / "leads", "user.overlay.redirect", b"/closed")
        mnt = hers.mount(*USERXATTR)
        (mnt / "old/file").unlink()
        (mnt / "old").rmdir()
        (mnt / "old").mkdir()
        assert hers.layerfs("commit", hers.name, "made:1").returncode == 0
        assert os.listdir(mnt / "old") == []
        again = hers.directory / "again"
        again.mkdir()
        hers.layerfs.ok("mount", "--image", "made:1", "--name", "again", again)
        assert os.listdir(again / "old") == []
        assert os.listxattr(again / "old") == []
        assert errno_of(lambda: os.listdir(again / "leads")) == errno.EPERM
        (again / "secretive").mkdir()
        os.setxattr(again / "secretive", "user.overlay.opaque", b"y")
        hers.layerfs.ok("commit", "again", "made:2")
        assert os.listxattr(again / "secretive") == ["user.overlay.opaque"]

    def test_it_is_an_option_of_the_mount_helper(self, hers: Stack) -> None:
        layers = f"lowerdir={hers.top}:{hers.bottom},upperdir={hers.upper},workdir={hers.work}"
        hers.layerfs.ok("none", hers.mnt, "-o", f"{layers},userxattr,name={hers.name}")
        assert os.listdir(hers.mnt / "dir") == []

    def test_it_is_an_option_in_a_configuration_file(self, hers: Stack) -> None:
        file = hers.directory / "mount.toml"
        lines = (
            f'lower = ["{hers.top}", "{hers.bottom}"]',
            f'upper = "{hers.upper}"',
            f'work = "{hers.work}"',
            f'name = "{hers.name}"',
            'options = "userxattr"',
        )
        file.write_text("\n".join(lines))
        hers.layerfs.ok("mount", "--config", file, hers.mnt)
        assert os.listdir(hers.mnt / "dir") == []

    def test_it_does_not_go_with_metacopy(self, hers: Stack) -> None:
        lowers = (f"--lower={hers.top}", f"--lower={hers.bottom}")
        uppers = (f"--upper={hers.upper}", f"--work={hers.work}")
        said = hers.layerfs.refused("mount", *lowers, *uppers, "-o", "userxattr,metacopy=on", hers.mnt)
        assert "metacopy" in said

    def test_it_does_not_go_with_an_image_of_root(self, hers: Stack) -> None:
        hers.layerfs.ok("import", hers.bottom, "base:1")
        said = hers.layerfs.refused("mount", "--image", "base:1", *USERXATTR, hers.mnt)
        assert "userxattr" in said
