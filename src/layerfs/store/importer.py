"""Import: a directory or a tar archive becomes the only layer of a new image."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from layerfs.archive.streams import Ahead, Feed, Read, decompressed
from layerfs.archive.tar import Reader
from layerfs.archive.unpack import Unpacker
from layerfs.errors import BadRequest, Forbidden, LayerfsError, NoSpace, from_os_error
from layerfs.store import dockerfile, events, images, layers, marks, settle, stacks
from layerfs.store.database import Database
from layerfs.store.model import HistoryEntry, Image, now, to_datetime
from layerfs.store.references import normalize
from layerfs.union.marking import of_this_process

Progress = Callable[[int], None]
"""Called now and then with the number of bytes done so far."""


def import_image(
    db: Database,
    source: Path | BinaryIO,
    reference: str | None,
    *,
    message: str,
    changes: Sequence[str],
    progress: Progress | None,
    called: str | None = None,
) -> Image:
    """Make an image of *source*; see `Store.import_image`."""
    name = normalize(reference) if reference else None
    config = dockerfile.apply({}, changes)
    report = progress or (lambda done: None)
    called = called or (str(source) if isinstance(source, Path) else "-")
    if isinstance(source, Path):
        _check_source(db, source)
    layer_id = layers.begin(db, "fs", filling=True)
    own = layers.directory(db, layer_id)
    try:
        digests = _fill(own / "fs", source, layer_id, report)
        size = layers.measure(own / "fs")
        settle.bring_to_rest(own / "fs", own, digests)
        with db.transaction():
            layers.insert(db, layer_id, "sealed", marks.name_of(of_this_process()), size=size)
            entry = HistoryEntry(to_datetime(now()), f"Imported from {called}", "", message, False, layer_id)
            image = images.insert(
                db,
                step=stacks.add(db, None, entry),
                history=(entry,),
                config=config,
                author="",
                comment=message,
            )
            events.record(db, "image", "import", image.id, {"name": name or ""})
            if name:
                images.tag(db, image.id, name)
    except BaseException as error:
        layers.discard(db, layer_id)
        if isinstance(error, OSError):
            raise from_os_error(error, f"import {called}") from None
        raise
    layers.keep(layer_id)
    db.sync()
    return images.get(db, image.id)


def _check_source(db: Database, source: Path) -> None:
    try:
        if not source.is_dir():
            with source.open("rb"):
                return
        with os.scandir(source):
            pass
    except OSError as error:
        raise from_os_error(error, f"import {source}") from None
    if db.root.resolve().is_relative_to(source.resolve()):
        raise BadRequest(f"cannot import {source}: it contains the store {db.root}; move one of them")


def _fill(tree: Path, source: Path | BinaryIO, layer_id: str, report: Progress) -> dict[int, str]:
    """Write *source* into *tree*; return the XXH3-128 of files by inode number, as far as they are known."""
    if not isinstance(source, Path):
        return _unpack(nullcontext(decompressed(_counted(source, report), more=True)), tree)
    if source.is_dir():
        _copy(source, tree, layers.held(layer_id), report)
        return {}
    with source.open("rb") as archive:
        return _unpack(Ahead(decompressed(_counted(archive, report), more=True)), tree)


def _unpack(stream: AbstractContextManager[Iterator[bytes]], tree: Path) -> dict[int, str]:
    """Unpack an archive; what may never end, a pipe, is not to be read ahead of the first error."""
    with stream as pieces, Unpacker(tree) as unpacker:
        reader = Reader(Feed(pieces))
        for member in reader:
            unpacker.add(member, reader)
        unpacker.finish()
        return unpacker.digests


def _counted(stream: BinaryIO, report: Progress) -> Read:
    done = 0

    def read(size: int) -> bytes:
        nonlocal done
        data = stream.read(size)
        done += len(data)
        report(done)
        return data

    return read


def _copy(source: Path, tree: Path, lock: int | None, report: Progress) -> None:
    """Copy a directory with everything that cp(1) can keep; other filesystems below it are left out."""
    command: list[str | Path] = [
        "cp",
        "-dRx",
        "--preserve=all",
        "--reflink=auto",
        "--sparse=auto",
        "-T",
        "--",
        f"{source}/.",
        tree,
    ]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        pass_fds=[lock] if lock is not None else [],  # the tree is locked as long as anybody writes to it
    ) as process:
        try:
            errors = _watch(process, report)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise _explained(source, errors)


def _watch(process: subprocess.Popen[bytes], report: Progress) -> str:
    """Report how much *process* has written until it ends; return what it complained about."""
    while True:
        try:
            return process.communicate(timeout=0.2)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                counters = Path(f"/proc/{process.pid}/io").read_text()
                if written := re.search(r"^wchar: (\d+)", counters, re.MULTILINE):
                    report(int(written[1]))


def _explained(source: Path, errors: str) -> LayerfsError:
    lines = errors.splitlines() or ["cp failed"]
    text = f"cannot import {source}: {lines[0].removeprefix('cp: ')}"
    if len(lines) > 1:
        text += f" (and {len(lines) - 1} more)"
    if "No space left" in errors or "quota" in errors:
        return NoSpace(text)
    if "Permission denied" in lines[0] or "not permitted" in lines[0]:
        return Forbidden(text)
    return LayerfsError(text)
