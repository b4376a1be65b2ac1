"""Images go out: always the same bytes, under the identity they came with; and come back as they were."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from layerfs import oci
from layerfs.errors import BadRequest, Conflict, LayerfsError, NoSpace, NotFound
from layerfs.store import Store, manifest
from layerfs.store.model import Image, Mount
from tests.unit.oci_support import (
    LAYER,
    Json,
    Layout,
    archive,
    as_archive,
    config_of,
    digest,
    docker_archive,
    files,
    named,
)
from tests.unit.steps_support import chain

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """Another store."""
    return Store(tmp_path / "other")


def read(layout: Path, about: Json) -> Json:
    """Return the document of a descriptor."""
    document: Json = json.loads(blob(layout, about["digest"]))
    return document


def blob(layout: Path, name: str) -> bytes:
    """Return a blob, which must be what it is called."""
    data = (layout / "blobs" / name.replace(":", "/")).read_bytes()
    assert digest(data) == name
    return data


def saved(
    store: Store, reference: str, where: Path, compression: str = "none"
) -> tuple[Json, Json, list[bytes]]:
    """Save an image; return its manifest, its configuration and its layers, all checked."""
    oci.save(store, [reference], where, format="oci-dir", compression=compression)
    index = json.loads((where / "index.json").read_text())
    image = read(where, index["manifests"][-1])
    config = read(where, image["config"])
    unpackers: dict[str, Callable[[bytes], bytes]] = {
        "none": bytes,
        "gzip": gzip.decompress,
        "zstd": unzstd,
    }
    suffix = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}[compression]
    layers = []
    for about, diff_id in zip(image["layers"], config["rootfs"]["diff_ids"], strict=True):
        data = blob(where, about["digest"])
        assert (about["size"], about["mediaType"]) == (len(data), LAYER + suffix)
        layers.append(unpackers[compression](data))
        assert digest(layers[-1]) == diff_id
    return image, config, layers


def unzstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data) as stream:
        return stream.read()


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_imported_tree_comes_back(
    store: Store, base: Image, other: Store, tmp_path: Path, compression: str
) -> None:
    _, config, layers = saved(store, "debian:12", tmp_path / "layout", compression)
    assert config["history"][0]["created_by"].startswith("Imported from")
    assert len(layers) == 1
    loaded = oci.load(other, tmp_path / "layout")[0]
    copy, original = (s.layer(i.layers[0]).path for s, i in ((other, loaded.image), (store, base)))
    assert list(manifest.records(copy)) == list(manifest.records(original))
    assert (copy / "bin/sh").stat().st_nlink == 2
    assert (copy / "sparse").stat().st_blocks < 100


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_the_same_bytes_each_time(
    store: Store, base: Image, other: Store, tmp_path: Path, form: str, compression: str
) -> None:
    def save(store: Store, name: str) -> str:
        oci.save(store, ["debian:12"], tmp_path / name, format=form, compression=compression)
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    first, second = save(store, "one"), save(store, "two")
    stream = io.BytesIO()
    oci.save(store, ["debian:12"], stream, format=form, compression=compression)
    oci.load(other, tmp_path / "one")
    assert {first, second, hashlib.sha256(stream.getvalue()).hexdigest(), save(other, "three")} == {first}


GNU = archive(
    ({"name": "x" * 120, "mtime": 5}, b"1" * 700),
    ({"name": "d/", "type": tarfile.DIRTYPE, "uname": "somebody"}, b""),
    ({"name": "d/twice"}, b"the first one is replaced"),
    ({"name": "d/link", "type": tarfile.LNKTYPE, "linkname": "d/twice"}, b""),
    ({"name": "d/twice"}, b"by the second"),
    ({"name": ".wh.gone"}, b"what is in here counts for nothing"),
    ({"name": "d/null", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
    form=tarfile.GNU_FORMAT,
)
FOREIGN = {
    "gnu tar": GNU,
    "not sorted": archive(*(({"name": name}, name.encode() * 3000) for name in "zab")),
    "odd padding": files(a="x").replace(b"x" + bytes(511), b"x" + b"padding" + bytes(504)),
    "no end": files(a="x")[:1024],
    "garbage after the end": files(a="x") + b"garbage",
    "empty": bytes(1024),
    "removed": archive(({"name": "d/x"}, b"1"), ({"name": "d"}, b"2")),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_an_image_keeps_its_identity(store: Store, tmp_path: Path, what: str) -> None:
    """However its archives were made: saved again, they are the same bytes."""
    layers = [FOREIGN[what], files(b="more")]
    layout = Layout(tmp_path / "came")
    config = config_of(layers, unknown={"field": 1.50}, created="2024-01-01T00:00:00.123456789+01:00")
    image = oci.load(store, layout.index(layout.image(layers, config=config)), references=["x"])[0].image
    _, _, written = saved(store, "x", tmp_path / "went")
    assert written == layers
    went = json.loads((tmp_path / "went/index.json").read_text())["manifests"][0]
    document = blob(tmp_path / "went", read(tmp_path / "went", went)["config"]["digest"])
    assert document == json.dumps(config).encode()
    assert hashlib.sha256(document).hexdigest() == image.id


def test_sparse_archives_keep_their_identity(store: Store, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as file:
        for at in range(0, 60):
            file.seek(at * 100_000)
            file.write(b"data")
        file.truncate(10 << 20)
    for form in ("gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"):
        data = subprocess.run(
            ["tar", "-S", f"--format={form.split()[0]}", *form.split()[1:], "-C", tree, "-c", "."],
            check=True,
            capture_output=True,
        ).stdout
        assert len(data) < 1 << 20
        layout = Layout(tmp_path / form.replace(" ", ""))
        image = oci.load(store, layout.index(layout.image([data])), references=["x"])[0].image
        copy = store.layers_of(image)[0].path / "sparse"
        assert copy.read_bytes() == (tree / "sparse").read_bytes()
        assert copy.stat().st_blocks < 70 * 8
        assert saved(store, "x", tmp_path / f"went-{form}")[2] == [data]
        assert list(store.verify(image.id)) == []


def test_an_image_that_went_out_is_known_when_it_comes_back(
    store: Store, base: Image, tmp_path: Path
) -> None:
    oci.save(store, ["debian:12"], tmp_path / "x.tar")
    again = oci.load(store, tmp_path / "x.tar", references=["back"])[0].image
    assert again.id == base.id
    assert len(store.images()) == 1


@needs_root
def test_layers_that_were_made_here_are_shared_too(
    store: Store, base: Image, mount: Mount, other: Store, tmp_path: Path
) -> None:
    (store.layer(mount.upper or "").path / "new").write_text("new")
    store.commit(
        mount, store.prepare_upper(mount), reference="two", author="me", comment="second", changes=["ENV A=b"]
    )
    oci.save(store, ["two", "debian:12"], tmp_path / "x.tar")
    loaded = oci.load(other, tmp_path / "x.tar")
    assert [each.references for each in loaded] == [("two:latest",), ("debian:12",)]
    assert loaded[0].image.layers[:1] == loaded[1].image.layers
    assert loaded[0].image.config == {"Env": ["A=b"]}
    assert (loaded[0].image.author, loaded[0].image.history[1].comment) == ("me", "second")
    mine, theirs = (
        [(row.created, row.created_by, row.size, row.comment) for row in s.history(s.resolve("two"))]
        for s in (store, other)
    )
    assert mine == theirs
    assert other.history(loaded[0].image)[1].id == "<missing>"  # nobody said that it was made from the other


def test_a_layer_that_is_not_what_it_was(store: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "came")
    image = oci.load(store, layout.index(layout.image([files(a="12345")])), references=["x"])[0].image
    file = store.layers_of(image)[0].path / "a"
    for content in ("54321", "1"):
        file.write_text(content)
        with pytest.raises(LayerfsError, match="layerfs verify"):
            oci.save(store, ["x"], tmp_path / "out.tar")
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]


# Outputs


def test_an_archive_of_docker_and_of_the_oci(store: Store, base: Image, tmp_path: Path) -> None:
    """The listing that Docker reads and the index speak of the same blobs."""
    store.tag(base.id, "quay.io/some/thing:1")
    oci.save(store, ["debian:12", "quay.io/some/thing:1"], tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "out", filter="data") if hasattr(
            tarfile, "data_filter"
        ) else tar.extractall(tmp_path / "out")
    assert (names[:2], names[-3:]) == (
        ["blobs", "blobs/sha256"],
        ["oci-layout", "index.json", "manifest.json"],
    )
    index = json.loads((tmp_path / "out/index.json").read_text())["manifests"]
    assert [entry["annotations"] for entry in index] == [
        {
            "io.containerd.image.name": "docker.io/library/debian:12",
            "org.opencontainers.image.ref.name": "12",
        },
        {"io.containerd.image.name": "quay.io/some/thing:1", "org.opencontainers.image.ref.name": "1"},
    ]
    about = read(tmp_path / "out", index[0])
    listing = json.loads((tmp_path / "out/manifest.json").read_text())
    assert listing == [
        {
            "Config": "blobs/" + about["config"]["digest"].replace(":", "/"),
            "RepoTags": ["debian:12", "quay.io/some/thing:1"],
            "Layers": ["blobs/" + about["layers"][0]["digest"].replace(":", "/")],
        }
    ]
    (tmp_path / "out/oci-layout").unlink()
    bare = as_archive(tmp_path / "out", tmp_path / "bare.tar")
    assert [each.references for each in oci.load(store, bare)] == [("debian:12", "quay.io/some/thing:1")]


def test_a_layout_takes_more_images(store: Store, base: Image, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    store.tag(base.id, "other:1")
    for names in (["debian:12"], ["other:1"], ["debian:12"], [base.id]):
        oci.save(store, names, layout, format="oci-dir")
    index = json.loads((layout / "index.json").read_text())["manifests"]
    names = [entry.get("annotations", {}).get("org.opencontainers.image.ref.name") for entry in index]
    assert names == ["1", "12", None]
    assert sorted(path.name[:4] for path in layout.iterdir()) == ["blob", "inde", "oci-"]
    assert len(os.listdir(layout / "blobs/sha256")) == 3
    (tmp_path / "full").mkdir()
    (tmp_path / "full/of").touch()
    with pytest.raises(Conflict, match="other things in it"):
        oci.save(store, ["debian:12"], tmp_path / "full", format="oci-dir")


def test_bad_requests(store: Store, base: Image, tmp_path: Path) -> None:
    wrong: list[tuple[type[LayerfsError], dict[str, Any], str]] = [
        (NotFound, {"references": ["none"]}, "no such image"),
        (BadRequest, {"format": "zip"}, "no format"),
        (BadRequest, {"compression": "lz4"}, "no compression"),
        (NotFound, {"output": tmp_path / "none/x.tar"}, "No such file"),
        (Conflict, {"output": io.BytesIO(), "format": "oci-dir"}, "cannot go to a stream"),
    ]
    for kind, change, says in wrong:
        arguments = {"references": ["debian:12"], "output": tmp_path / "x.tar", **change}
        with pytest.raises(kind, match=says):
            oci.save(store, arguments.pop("references"), arguments.pop("output"), **arguments)
    assert not [path for path in tmp_path.iterdir() if "x.tar" in path.name]


def test_a_failed_save_leaves_the_file_that_was_there(store: Store, base: Image, tmp_path: Path) -> None:
    target = tmp_path / "x.tar"
    target.write_text("precious")
    (store.layer(base.layers[0]).path / "sub").mkdir()
    (store.layer(base.layers[0]).path / "sub/.wh.x").touch()
    with pytest.raises(LayerfsError, match=r"sub/\.wh\.x"):
        oci.save(store, ["debian:12"], target)
    assert target.read_text() == "precious"
    assert [path.name for path in tmp_path.glob("*x.tar*")] == ["x.tar"]
    (store.layer(base.layers[0]).path / "sub/.wh.x").unlink()
    with pytest.raises(NoSpace), open("/dev/full", "wb", buffering=0) as full:
        oci.save(store, ["debian:12"], full)
    with pytest.raises(NoSpace):
        oci.save(store, ["debian:12"], Path("/dev/full"))


def test_a_mode_as_others_have_it(store: Store, base: Image, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        oci.save(store, ["debian:12"], tmp_path / "x.tar")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.tar").stat().st_mode) == 0o640


@needs_root
def test_what_a_base_says_of_its_platform_is_inherited(store: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "came")
    config = config_of([files(a="a")], architecture="arm", variant="v7")
    base = oci.load(store, layout.index(layout.image([files(a="a")], config=config)))[0].image
    mount = store.create_mount("m", image=base)
    store.commit(mount, store.prepare_upper(mount), reference="derived")
    _, document, _ = saved(store, "derived", tmp_path / "went")
    assert (document["architecture"], document["variant"], document["os"]) == ("arm", "v7", "linux")
    assert document["config"] == config["config"]
    assert [entry["created_by"] for entry in document["history"]] == ["step 0", "layerfs commit m"]


def test_an_old_archive_becomes_a_new_one(store: Store, tmp_path: Path) -> None:
    source = docker_archive(tmp_path / "old.tar", [files(a="a"), files(b="b"), files(a="a")], ["x"])
    before = oci.load(store, source)[0].image
    oci.save(store, ["x"], tmp_path / "new.tar")
    with Store(tmp_path / "other") as other:
        assert oci.load(other, tmp_path / "new.tar")[0].image.id == before.id


def test_names_of_images(store: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "came")
    oci.load(store, layout.index(layout.image([files(a="a")], annotations=named("localhost:5000/me/x:v1"))))
    oci.save(store, ["localhost:5000/me/x:v1"], tmp_path / "x.tar")
    with Store(tmp_path / "other") as other:
        assert oci.load(other, tmp_path / "x.tar")[0].references == ("localhost:5000/me/x:v1",)


@pytest.mark.parametrize("format", ["oci-dir", "oci-archive"])
def test_processes_side_by_side_write_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    with store.building():
        steps = chain(store, "a", (1000, 300_000, 5))
        store.steps.make_image(steps[-1], {}, references=["x"])
    oci.save(store, ["x"], tmp_path / "alone", format=format)
    with store.database.transaction():
        store.database.execute("UPDATE layers SET diff_id = NULL, chain_id = NULL")
    monkeypatch.setattr("layerfs.oci.packing._SMALL", 0)
    oci.save(store, ["x"], tmp_path / "beside", format=format)
    subprocess.run(["diff", "-r", tmp_path / "alone", tmp_path / "beside"], check=True)
    assert all(store.layer(layer).diff_id for layer in store.resolve("x").layers)


def test_whoever_saves_may_end_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the client does who goes while an image is being pushed: nothing is left."""
    monkeypatch.setattr("layerfs.oci.packing._SMALL", 0)
    with store.building():
        steps = chain(store, "a", (64 << 20, 64 << 20))
        store.steps.make_image(steps[-1], {}, references=["x"])

    def check() -> None:
        raise Conflict("the client has gone")

    with pytest.raises(Conflict, match="has gone"):
        oci.save(store, ["x"], tmp_path / "layout", format="oci-dir", check=check)
    assert list((tmp_path / "layout/blobs/sha256").iterdir()) == []
