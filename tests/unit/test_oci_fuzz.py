"""Random damage to layers and documents: one clear error, or a tree that comes back as it is.

Bounded here; `LAYERFS_FUZZ_SECONDS=600 scripts/test tests/unit/test_oci_fuzz.py` runs each part so long.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from layerfs import oci
from layerfs.archive.layertar import LayerTar
from layerfs.archive.limits import Limits
from layerfs.errors import LayerfsError
from layerfs.oci import recipe
from layerfs.oci.source import Region
from layerfs.oci.unpacking import Job, do
from layerfs.store import Store, manifest
from tests.unit.oci_support import INDEX, Layout, archive, config_of, digest, files, named
from tests.unit.union_support import plain_stack

SECONDS = float(os.environ.get("LAYERFS_FUZZ_SECONDS", "3"))
LIMITS = Limits(size=8 << 20, files=300)
pytestmark = pytest.mark.timeout(SECONDS * 2 + 60)

XATTRS = {"SCHILY.xattr.user.a": "1", "SCHILY.xattr.trusted.overlay.opaque": "y", "mtime": "1.000000005"}
LINK, SYMLINK, DIRECTORY = tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE


def seeds(directory: Path) -> list[bytes]:
    """Return archives of all the forms that are read."""
    tree = directory / "seed"
    (tree / "d").mkdir(parents=True)
    with (tree / "d/sparse").open("wb") as file:
        for at in range(40):
            file.seek(at * 50_000)
            file.write(b"data")
    (tree / "d" / ("long" * 50)).write_text("x")
    made = [
        archive(
            ({"name": "./", "type": DIRECTORY, "mode": 0o755}, b""),
            ({"name": "d/", "type": DIRECTORY, "pax_headers": XATTRS}, b""),
            ({"name": "d/file", "pax_headers": XATTRS}, b"x" * 700),
            ({"name": "d/link", "type": LINK, "linkname": "d/file"}, b""),
            ({"name": "d/symlink", "type": SYMLINK, "linkname": "../.."}, b""),
            ({"name": "d/.wh.gone"}, b""),
            ({"name": "gone/.wh..wh..opq"}, b""),
            ({"name": "null", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
            ({"name": "pipe", "type": tarfile.FIFOTYPE}, b""),
            ({"name": "d/file"}, b"again"),
            ({"name": "gone/x/y"}, b"1"),
            ({"name": ".wh.gone"}, b""),
            form=form,
        )
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    ]
    for form in ("gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"):
        words = ["tar", "-S", f"--format={form.split()[0]}", *form.split()[1:], "-C", str(tree), "-c", "."]
        made.append(subprocess.run(words, check=True, capture_output=True).stdout)
    return made


NUMBERS = (
    b"",
    b"0",
    b"-1",
    b"7777777777",
    b"\x80" + b"\xff" * 7,
    b"\xff" * 12,
    b"9223372036854775808",
    b"1e9",
)
NAMES = (
    b"",
    b".",
    b"..",
    b"/",
    b"d",
    b"d/..",
    b"d/symlink/x",
    b".wh.d",
    b".wh..wh..opq",
    b"d/file/x",
    b"\xff\n",
)
TYPES = b"0123456LKxgSVDM\0Z"
OFFSETS = (0, 100, 108, 116, 124, 136, 156, 157, 257, 329, 337, 345, 386, 398, 482, 483)


def damaged(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Return *data* with some things changed that a reader may stumble over."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(blocks))
        kind = chance.randrange(9)
        if kind == 0:
            blocks[at][chance.randrange(512)] = chance.randrange(256)
        elif kind == 1:
            blocks[at][156] = chance.choice(TYPES)
        elif kind in (2, 3):
            offset, value = chance.choice(OFFSETS), chance.choice(NUMBERS if kind == 2 else NAMES)
            blocks[at][offset : offset + len(value) + 1] = (value + b"\0")[: 512 - offset]
        elif kind == 4:
            blocks.insert(at, bytearray(chance.choice(blocks)))
        elif kind == 5 and len(blocks) > 1:
            del blocks[at]
        elif kind == 6:
            other = chance.choice(others)
            start = chance.randrange(len(other) // 512) * 512
            blocks[at:at] = [bytearray(other[start : start + 512])]
        elif kind == 7:
            text = bytes(blocks[at])
            digits = [place for place in range(512) if text[place : place + 1].isdigit()]
            if digits:
                blocks[at][chance.choice(digits)] = chance.choice(b"0123456789 =\n")
        else:
            del blocks[chance.randrange(1, len(blocks) + 1) :]
        blocks = [block.ljust(512, b"\0")[:512] for block in blocks] or [bytearray(512)]
    for block in blocks:
        if chance.random() < 0.95 and (block[257:262] == b"ustar" or block[100:104] == b"0000"):
            block[148:156] = b"        "
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def for_a_while() -> Iterator[random.Random]:
    """Yield sources of chance, one for each try, until the time is over."""
    start = int(os.environ.get("LAYERFS_FUZZ_SEED", time.time_ns() % 1_000_000_000))
    end = time.monotonic() + SECONDS
    seed = start
    while time.monotonic() < end:
        yield random.Random(seed)
        seed += 1
    print(f"{seed - start} tries from seed {start}")


def test_damaged_layers(tmp_path: Path) -> None:
    others = seeds(tmp_path)
    outside = sorted(tmp_path.rglob("*"))
    for chance in for_a_while():
        data = damaged(chance.choice(others), chance, others)
        layer = tmp_path / "layer"
        (layer / "fs").mkdir(parents=True)
        blob = tmp_path / "blob"
        blob.write_bytes(data)
        try:
            check_layer(layer, blob, data)
        finally:
            shutil.rmtree(layer)
            blob.unlink()
        assert sorted(tmp_path.rglob("*")) == outside


def check_layer(layer: Path, blob: Path, data: bytes) -> None:
    """Unpack *data*; if that works, its archive and its tree can be had again."""
    with blob.open("rb") as file:
        job = Job(layer, Region(file.fileno(), 0, len(data)), digest(data), None, LIMITS)
        try:
            done = do(job, lambda progress: None)
        except LayerfsError as error:
            check_line(error)
            return
    tree = layer / "fs"
    assert b"".join(recipe.replay(layer / recipe.NAME, tree)) == data
    expected = list(manifest.records(tree))
    assert list(manifest.read(layer / "manifest")) == expected
    assert done.size == sum(int(record.size) for record in expected if record.type == "f") or any(
        path.lstat().st_nlink > 1 for path in tree.rglob("*")
    )
    again = b"".join(LayerTar(plain_stack(tree)).pieces())
    second = layer / "second"
    (second / "fs").mkdir(parents=True)
    blob.write_bytes(again)
    with blob.open("rb") as file:
        do(
            Job(second, Region(file.fileno(), 0, len(again)), digest(again), None, LIMITS),
            lambda progress: None,
        )
    assert [shown(record) for record in manifest.records(second / "fs")] == [shown(r) for r in expected]


def shown(record: manifest.Record) -> manifest.Record:
    """Return what people see of *record*: a whiteout has no owner, mode or time for them."""
    if (record.type, record.detail) == ("c", "0:0"):
        return record._replace(mode="", uid="", gid="", mtime="", xattrs=())
    return record


def check_line(error: LayerfsError) -> None:
    """Check that *error* is one line that people can read."""
    assert "\n" not in str(error)
    assert len(str(error)) < 800


VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1 << 70,
    1.5,
    "",
    "x",
    "\ud800",
    "../x",
    [],
    {},
    [[]],
    {"a": {}},
)


def changed(chance: random.Random, document: Any) -> Any:
    """Return *document* with one value or key replaced, removed or doubled, at any depth."""
    result = copy.deepcopy(document)
    places: list[tuple[Any, Any]] = []
    pending = [result]
    while pending:
        value = pending.pop()
        inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        places += [(value, key) for key, _ in inner]
        pending += [item for _, item in inner if isinstance(item, dict | list) and item]
    holder, key = chance.choice(places)
    how = chance.randrange(4)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif how == 2:
        other, other_key = chance.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    else:
        holder[key] = chance.choice(VALUES)
    return result


def test_damaged_documents(store: Store, tmp_path: Path) -> None:
    layers = [files(a="a"), files(b="b")]
    for number, chance in enumerate(for_a_while()):
        layout = Layout(tmp_path / str(number))
        damage: list[Callable[[Any], Any]] = [lambda document: document] * 4
        damage[chance.randrange(4)] = partial(changed, chance)
        config = damage[0](config_of(layers))
        image = layout.image(layers, config=config, annotations=named("x:1"))
        fields = json.loads((layout.path / "blobs" / image["digest"].replace(":", "/")).read_text())
        image = layout.blob(
            damage[1](fields), image["mediaType"], platform={"os": "linux", "architecture": "amd64"}
        )
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [image]}
        nested = layout.blob(damage[2](index), INDEX, annotations=named("x:1"))
        layout.top(damage[3]({"schemaVersion": 2, "manifests": [nested, image]}))
        try:
            for loaded in oci.load(store, layout.path):
                store.history(loaded.image)
                store.remove_image(loaded.image.id, force=True)
        except LayerfsError as error:
            check_line(error)
        for left in store.images():
            store.remove_image(left.id, force=True)
        assert list((store.root / "layers").iterdir()) == []
        shutil.rmtree(layout.path)
