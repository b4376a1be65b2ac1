"""Ctrl-C at any line of a commit of a mount at rest leaves the old state or the new one.

From the moment on when the next upper has been prepared; before that it is like any end of a process.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from layerfs import mounting
from layerfs import store as store_package
from layerfs.mounting.mount import Commit
from layerfs.mounting.resting import Resting
from layerfs.store import Store
from layerfs.store.model import Image, Mount

_WANTED = Commit("image")
_LAST = 60
"""Lines, the last ones of a commit, all of which are tried: its transaction ends among them."""
_STEP = 13
"""Of the others so many are left out from one to the next."""
_WATCHED = tuple(os.path.dirname(str(package.__file__)) for package in (store_package, mounting))


def interrupted_at(line: int, root: Path) -> bool:
    """Commit in a process that gets Ctrl-C before its *line*-th line of ours; tell whether it got there."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            with Store(root) as store:
                mount = store.mount("m")
                tracer, commit = Interrupting(line), store.commit

                def traced(*arguments: Any, **more: Any) -> Image:
                    sys.settrace(tracer)
                    return commit(*arguments, **more)

                store.commit = traced  # type: ignore[method-assign]
                try:
                    Resting(store, mount)._patiently(
                        mount, lambda row, upper: store.commit(row, upper, reference=_WANTED.reference)
                    )
                    status = 0
                finally:
                    sys.settrace(None)
                    (root / "lines").write_text(f"{tracer.count}")
        except KeyboardInterrupt:
            status = 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1), f"line {line}: something else came of it"
    return bool(status)


class Interrupting:
    """Raises `KeyboardInterrupt` once, before the *line*-th line of ours; a tracer. `count` were met."""

    def __init__(self, line: int) -> None:
        self._line = line
        self.count = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        """Look at one event of the interpreter."""
        if not frame.f_code.co_filename.startswith(_WATCHED):
            return None
        if event in ("line", "return"):
            self.count += 1
            if self.count == self._line:
                raise KeyboardInterrupt
        return self


@pytest.fixture(params=["of the store", "outside"])
def committed(request: pytest.FixtureRequest, store: Store, base: Image, tmp_path: Path) -> Mount:
    """A mount to be committed, whose upper is the store's own or a directory outside it."""
    if request.param == "of the store":
        return store.create_mount("m", image=base)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    outside = tmp_path / "upper", tmp_path / "work"
    return store.create_mount("m", image=base, external_upper=outside)


def test_a_commit_is_interrupted_at_any_line(store: Store, committed: Mount) -> None:
    assert not interrupted_at(0, store.root)
    lines = int((store.root / "lines").read_text())
    assert lines > _LAST
    outcomes = set()
    for line in [*range(1, lines - _LAST, _STEP), *range(lines - _LAST, lines + 1)]:
        mount = store.mount("m")
        assert mount.upper is not None
        upper = store.layer(mount.upper)
        (upper.path / "file").write_text(f"{line}")
        assert interrupted_at(line, store.root), line
        store.recover()
        assert list(store.check()) == [], line
        after = store.mount("m")
        assert after.upper is not None
        is_old = after.upper == mount.upper
        assert (store.layer(mount.upper).path / "file").read_text() == f"{line}", line
        assert os.listdir(store.layer(after.upper).path) == (["file"] if is_old else []), line
        outcomes.add(is_old)
    assert outcomes == {True, False}
