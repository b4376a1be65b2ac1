"""How the program starts and ends: what a short command does not wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_unixhttp_client import saying

NOTHING = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n[]\n"


def layerfs(path: Path, *words: str, imports: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command with the engine on the socket in *path*."""
    environment = {
        **os.environ,
        "LAYERFS_ROOT": str(path / "store"),
        "LAYERFS_RUN": str(path / "run"),
        "LAYERFS_ENGINE": str(path / "socket"),
    }
    command = [sys.executable, *(["-X", "importtime"] if imports else []), "-m", "layerfs", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", ["ps", "images"])
def test_a_listing_asks_the_engine_once_and_imports_little(tmp_path: Path, command: str) -> None:
    with saying(tmp_path, NOTHING) as engine:  # which answers once
        done = layerfs(tmp_path, command, imports=True)
    assert done.returncode == 0
    assert " ID" in done.stdout
    assert engine.heard.startswith(b"GET /")
    slow = {
        "argparse", "dataclasses", "email", "h11", "http.client", "layerfs.api.app", "layerfs.store",
        "logging", "sqlite3", "subprocess", "tempfile", "trio",
    }  # fmt: skip
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in loaded
    assert not slow & loaded


def test_what_was_said_before_the_end_is_written(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    made = layerfs(tmp_path, "import", str(tmp_path / "tree"), "a:1")
    assert made.returncode == 0
    done = layerfs(tmp_path, "inspect", "a:1", "none")
    assert done.returncode == 1
    assert '"a:1"' in done.stdout
    assert done.stderr == "layerfs: no such mount or image: none\n"


def test_a_full_disk_under_the_output_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    layerfs(tmp_path, "import", str(tmp_path / "tree"), "a:1")
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "LAYERFS_ROOT": str(tmp_path / "store"), "LAYERFS_ENGINE": "none"}
        done = subprocess.run(
            [sys.executable, "-m", "layerfs", "images"],
            env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "layerfs: No space left on device\n")
