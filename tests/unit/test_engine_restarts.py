"""What an engine takes up when it starts, and that it starts whatever it finds."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from layerfs.api.routes import Place
from layerfs.engine.restarts import take_up
from layerfs.mounting.request import MountRequest
from layerfs.store import Store


def launch(request: MountRequest) -> str:
    raise AssertionError(request)


def test_what_cannot_be_looked_at_keeps_no_engine_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("LAYERFS_RUN", str(run))
    run.mkdir(mode=0o700)
    (run / "containers").write_text("no directory")
    tree = tmp_path / "tree"
    tree.mkdir()
    with Store(tmp_path / "store") as store:
        image = store.import_image(tree, "base")
        for name in ("one", "two"):
            options = {"container": {"Tty": False, "Restarting": True}}
            store.create_mount(name, image=image, options=options)
    with caplog.at_level(logging.ERROR):
        take_up(Place(tmp_path / "store", launch))
    assert len(caplog.messages) >= 1
    assert all("\n" not in message for message in caplog.messages)
