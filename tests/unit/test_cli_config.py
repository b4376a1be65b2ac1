"""The configuration file of a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.cli.config import apply_config
from layerfs.cli.options import MountOptions
from layerfs.errors import LayerfsError, UsageError
from layerfs.store import Store
from tests.unit.control_support import make_tree

TEXT = """
image = "debian:12"
name = "base"
mountpoint = "/mnt/x"
options = "ro,nosuid"
"""


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(TEXT)
    wanted = MountOptions()
    assert apply_config(file, wanted, None, tmp_path / "store") == ("/mnt/x", tmp_path / "store")
    assert wanted == MountOptions(image="debian:12", name="base", read_only=True, switches={"suid": False})
    wanted = MountOptions(lowers=("/a",), name="other", switches={"suid": True})
    assert apply_config(file, wanted, "/mnt/y", tmp_path / "store") == ("/mnt/y", tmp_path / "store")
    assert wanted == MountOptions(lowers=("/a",), name="other", read_only=True, switches={"suid": True})


def test_plain_directories(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('lower = ["/a", "/b:c"]\nupper = "/u"\nwork = "/w"\nread_only = false\n')
    wanted = MountOptions()
    assert apply_config(file, wanted, "/mnt", tmp_path / "store") == ("/mnt", tmp_path / "store")
    assert wanted == MountOptions(lowers=("/a", "/b:c"), upper="/u", work="/w")


def test_a_mount_that_exists_is_resumed(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(TEXT)
    with Store(tmp_path / "store") as store:
        store.create_mount("base", image=store.import_image(make_tree(tmp_path / "tree"), "debian:12"))
    wanted = MountOptions()
    assert apply_config(file, wanted, None, tmp_path / "store") == ("/mnt/x", tmp_path / "store")
    assert wanted == MountOptions(name="base")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("imgae = 'x'", "unknown key 'imgae'"),
        ("image = 3", "image must be a text"),
        ("lower = '/a'", "lower must be a list"),
        ("lower = [1]", "lower must be a list"),
        ("read_only = 'yes'", "read_only must be"),
        ("options = 'wrong'", "unknown mount option 'wrong'"),
        ("image = ", "x.toml"),
        ("image = '\xff'", "x.toml"),
    ],
)
def test_bad_files_are_usage_errors(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=named):
        apply_config(file, MountOptions(), None, tmp_path / "store")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LayerfsError, match="cannot read the configuration: No such file"):
        apply_config(tmp_path / "x.toml", MountOptions(), None, tmp_path / "store")


@pytest.mark.parametrize("line", ['name = ""', 'image = ""', 'upper = ""', 'mountpoint = ""', 'root = ""'])
def test_an_empty_text_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(line)
    with pytest.raises(
        UsageError, match=f"{line.partition(' ')[0]} is empty: give one, or leave the line out"
    ):
        apply_config(file, MountOptions(), None, tmp_path / "store")
    file.write_text('lower = ["/a", ""]')
    with pytest.raises(UsageError, match="lower must be a list of directories"):
        apply_config(file, MountOptions(), None, tmp_path / "store")
