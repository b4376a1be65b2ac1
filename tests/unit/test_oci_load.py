"""Images of every form that the specifications know come into the store."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from layerfs import oci
from layerfs.store import Store, manifest
from layerfs.store.model import Image
from tests.unit.oci_support import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    PACKERS,
    Layout,
    archive,
    as_archive,
    assert_refused,
    config_of,
    digest,
    docker_archive,
    files,
    named,
)

BOTTOM, TOP = files(a="bottom", b="bottom"), files(b="top", c="top")
HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
DOCKER = "application/vnd.docker.distribution.manifest"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty layout."""
    return Layout(tmp_path / "layout")


def names_in(store: Store, image: Image) -> list[list[str]]:
    """Return the names in each layer of an image."""
    return [sorted(os.listdir(layer.path)) for layer in store.layers_of(image)]


def load_one(store: Store, source: Path | io.BytesIO, **options: Any) -> oci.Loaded:
    loaded = oci.load(store, source, **options)
    assert len(loaded) == 1
    return loaded[0]


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("form", ["directory", "archive", "stream", "compressed"])
def test_layouts(store: Store, layout: Layout, tmp_path: Path, pack: str, form: str) -> None:
    path = layout.index(layout.image([BOTTOM, TOP], pack=pack, annotations=named("some/thing:1")))
    source: Path | io.BytesIO = path
    if form != "directory":
        source = as_archive(path, tmp_path / "x.tar")
    if isinstance(source, Path) and form in ("stream", "compressed"):
        data = source.read_bytes()
        source = io.BytesIO(bz2.compress(data) if form == "compressed" else data)
    loaded = load_one(store, source)
    assert loaded.references == ("some/thing:1",)
    assert names_in(store, loaded.image) == [["a", "b"], ["b", "c"]]
    config = json.dumps(config_of([BOTTOM, TOP])).encode()
    assert f"sha256:{loaded.image.id}" == digest(config)
    assert loaded.image.config == {"Cmd": ["sh"], "Env": ["A=b"]}
    assert loaded.image.created.isoformat() == "2024-05-06T07:08:09.123456+00:00"
    assert [entry.created_by for entry in loaded.image.history] == ["step 0", "step 1"]
    assert list(store.verify("some/thing:1")) == []
    assert list((store.root / "tmp").iterdir()) if (store.root / "tmp").exists() else True


def test_an_archive_of_docker(store: Store, tmp_path: Path) -> None:
    layers = [BOTTOM, TOP, BOTTOM]
    source = docker_archive(tmp_path / "x.tar", layers, ["debian:12", "docker.io/library/debian:old"])
    loaded = load_one(store, source)
    assert loaded.references == ("debian:12", "debian:old")
    assert names_in(store, loaded.image) == [["a", "b"], ["b", "c"], ["a", "b"]]
    assert store.resolve("debian:old").id == loaded.image.id


def test_several_images_in_an_archive_of_docker(store: Store, tmp_path: Path) -> None:
    one = docker_archive(tmp_path / "one.tar", [BOTTOM], ["one"])
    two = docker_archive(tmp_path / "two.tar", [BOTTOM, TOP], None)
    assert load_one(store, one).references == ("one:latest",)
    assert load_one(store, two).references == ()
    assert load_one(store, two, references=["a", "b:2"]).references == ("a:latest", "b:2")


def test_history_with_empty_layers(store: Store, layout: Layout) -> None:
    history = [
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD rootfs", "comment": "base"},
        {"created_by": "ENV A=b", "empty_layer": True, "created": "2024-01-02T03:04:05+02:00"},
        {"created_by": "COPY", "author": "me"},
        {"created_by": "CMD", "empty_layer": True},
    ]
    layout.index(layout.image([BOTTOM, TOP], config=config_of([BOTTOM, TOP], history=history)))
    image = load_one(store, layout.path).image
    rows = store.history(image)
    assert [(row.created_by, row.size, row.comment) for row in rows] == [
        ("CMD", 0, ""),
        ("COPY", 6, ""),
        ("ENV A=b", 0, ""),
        ("ADD rootfs", 12, "base"),
    ]
    assert [row.id for row in rows] == [image.id, "<missing>", "<missing>", "<missing>"]
    assert rows[2].created.isoformat() == "2024-01-02T01:04:05+00:00"


@pytest.mark.parametrize("history", [None, [], [{"created_by": "first"}]])
def test_a_history_that_says_too_little(store: Store, layout: Layout, history: list[Any] | None) -> None:
    config = config_of([BOTTOM, TOP], history=history)
    layout.index(layout.image([BOTTOM, TOP], config=config))
    image = load_one(store, layout.path).image
    assert names_in(store, image) == [["a", "b"], ["b", "c"]]
    assert len(store.history(image)) == 2


def test_layers_are_shared(store: Store, layout: Layout, tmp_path: Path) -> None:
    whole = archive(({"name": "./", "type": b"5"}, b""), ({"name": "x"}, b"x"))  # says all about itself
    first = load_one(store, layout.index(layout.image([BOTTOM, TOP, whole]))).image
    other = Layout(tmp_path / "other")
    more = files(d="more")
    second = load_one(store, other.index(other.image([BOTTOM, TOP, more], pack="+zstd"))).image
    assert second.layers[:2] == first.layers[:2]
    again = load_one(store, docker_archive(tmp_path / "x.tar", [more, whole, TOP], ["x"])).image
    assert again.layers[1] == first.layers[2]
    assert again.layers[0] != second.layers[2]  # its root is as it was below, which is not the same here
    assert len(list((store.root / "layers").iterdir())) == 6


def test_images_of_one_archive_share_layers(store: Store, layout: Layout) -> None:
    whole = archive(({"name": "./", "type": b"5"}, b""), ({"name": "x"}, b"x"))
    layout.index(
        layout.image([BOTTOM, TOP, whole], annotations=named("one")),
        layout.image([BOTTOM, whole], annotations=named("two")),
    )
    one, two = (loaded.image for loaded in oci.load(store, layout.path))
    assert two.layers == (one.layers[0], one.layers[2])
    rows = store.database.execute("SELECT id FROM layers").fetchall()
    assert {path.name for path in (store.root / "layers").iterdir()} == {row[0] for row in rows}
    assert len(rows) == 3


def test_loading_twice(store: Store, layout: Layout) -> None:
    layout.index(layout.image([BOTTOM, TOP], annotations=named("x:1")))
    first = load_one(store, layout.path)
    second = load_one(store, layout.path, references=["y"])
    assert first.image.id == second.image.id
    assert store.resolve("y").tags == ("x:1", "y:latest")
    assert [event.action for event in store.events() if event.type == "image"] == ["load", "tag", "tag"]


def test_directories_that_no_layer_says_anything_of_stay_as_they_were(store: Store, layout: Layout) -> None:
    bottom = archive(
        ({"name": "./", "type": b"5", "mode": 0o751, "mtime": 7}, b""),
        (
            {
                "name": "d/",
                "type": b"5",
                "mode": 0o1711,
                "mtime": 8,
                "pax_headers": {"SCHILY.xattr.user.a": "1"},
            },
            b"",
        ),
        ({"name": "gone/", "type": b"5", "mode": 0o700, "mtime": 9}, b""),
    )
    top = archive(({"name": "d/new"}, b""), ({"name": ".wh.gone"}, b""), ({"name": "gone/new/x"}, b""))
    image = load_one(store, layout.index(layout.image([bottom, top]))).image
    tree = store.layers_of(image)[1].path
    assert (tree.stat().st_mode & 0o7777, tree.stat().st_mtime) == (0o751, 7)
    assert ((tree / "d").stat().st_mode & 0o7777, (tree / "d").stat().st_mtime) == (0o1711, 8)
    assert os.getxattr(tree / "d", "user.a") == b"1"
    assert ((tree / "gone").stat().st_mode & 0o7777, (tree / "gone").stat().st_mtime) == (0o755, 0)
    assert list(store.verify(image.id)) == []


def test_whiteouts_in_any_order(store: Store, layout: Layout) -> None:
    """A whiteout is about the layers below, whatever the same archive has of that name."""
    bottom = archive(({"name": "a/old"}, b""), ({"name": "b/old"}, b""), ({"name": "c/d/old"}, b""))
    top = archive(
        ({"name": "a/new"}, b""),
        ({"name": ".wh.a"}, b""),
        ({"name": ".wh.b"}, b""),
        ({"name": "b/", "type": b"5"}, b""),
        ({"name": "b/new"}, b""),
        ({"name": "c"}, b"now a file"),
        ({"name": "c/.wh.d"}, b""),
    )
    image = load_one(store, layout.index(layout.image([bottom, top]))).image
    tree = store.layers_of(image)[1].path
    marks = [os.listxattr(tree / name) for name in ("a", "b")]
    assert [[name.rpartition(".")[2] for name in names] for names in marks] == [["opaque"], ["opaque"]]
    assert (tree / "c").read_text() == "now a file"


def test_names_that_are_alike(store: Store, layout: Layout) -> None:
    alike = ["Name", "name", "NAME", "caf\u00e9", "cafe\u0301", "\u212b", "\u00c5"]
    data = archive(*(({"name": name}, str(at).encode()) for at, name in enumerate(alike)))
    tree = store.layers_of(load_one(store, layout.index(layout.image([data]))).image)[0].path
    assert [(tree / name).read_text() for name in alike] == [str(at) for at in range(len(alike))]


# Manifests, indexes and platforms


def two_platforms(layout: Layout, **more: Any) -> list[dict[str, Any]]:
    entries = []
    for architecture, layer in ((HERE, BOTTOM), ("riscv64", TOP)):
        config = config_of([layer], architecture=architecture)
        platform_of = {"architecture": architecture, "os": "linux"}
        entries.append(layout.image([layer], config=config, platform=platform_of, **more))
    return entries


@pytest.mark.parametrize("nested", [0, 1, 3])
@pytest.mark.parametrize("media_type", [INDEX, f"{DOCKER}.list.v2+json"])
def test_a_platform_is_chosen(store: Store, layout: Layout, nested: int, media_type: str) -> None:
    entries = two_platforms(layout)
    for _ in range(nested):
        index = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
        entries = [layout.blob(index, media_type)]
    layout.index(*entries)
    assert names_in(store, load_one(store, layout.path).image) == [["a", "b"]]
    foreign = load_one(store, layout.path, platform="linux/riscv64").image
    assert (foreign.architecture, names_in(store, foreign)) == ("riscv64", [["b", "c"]])
    says = f"no image for linux/s390x: .* of linux/{HERE}, linux/riscv64"
    assert_refused(store, layout.path, says, platform="linux/s390x")


def test_a_platform_is_found_in_the_configuration(store: Store, layout: Layout) -> None:
    entries = two_platforms(layout)
    for entry in entries:
        del entry["platform"]
    layout.index(*entries)
    assert load_one(store, layout.path, platform="riscv64").image.architecture == "riscv64"


def test_variants(store: Store, layout: Layout) -> None:
    entries = []
    for variant, layer in (("v6", BOTTOM), ("v7", TOP)):
        config = config_of([layer], architecture="arm", variant=variant)
        where = {"architecture": "arm", "os": "linux", "variant": variant}
        entries.append(layout.image([layer], config=config, platform=where))
    layout.index(*entries)
    for wanted, expected in (("linux/arm", "b"), ("linux/arm/v6", "a"), ("arm/v7", "b")):
        assert (
            names_in(
                store,
                load_one(
                    store, layout.path, platform=f"linux/{wanted}" if wanted.startswith("arm") else wanted
                ).image,
            )[0][0]
            == expected
        )
    assert_refused(store, layout.path, "no image for linux/arm/v5", platform="linux/arm/v5")
    assert_refused(store, layout.path, "is no platform", platform="a/b/c/d")


def test_one_image_of_another_platform_is_loaded_unless_one_was_asked_for(
    store: Store, layout: Layout
) -> None:
    layout.index(layout.image([BOTTOM], config=config_of([BOTTOM], architecture="riscv64", os="linux")))
    assert_refused(store, layout.path, "for linux/riscv64, not for linux/amd64", platform="linux/amd64")
    assert load_one(store, layout.path).image.architecture == "riscv64"


def test_dockers_schema_2(store: Store, layout: Layout) -> None:
    kinds = "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs"
    config = layout.blob(config_of([BOTTOM, TOP]), kinds[0])
    layers = [
        layout.blob(gzip.compress(BOTTOM), f"{kinds[1]}.diff.tar.gzip"),
        layout.blob(gzip.compress(TOP), f"{kinds[1]}.foreign.diff.tar.gzip"),
    ]
    fields = {"schemaVersion": 2, "mediaType": f"{DOCKER}.v2+json", "config": config, "layers": layers}
    layout.index(layout.blob(fields, f"{DOCKER}.v2+json"))
    assert names_in(store, load_one(store, layout.path).image) == [["a", "b"], ["b", "c"]]


def test_what_version_1_1_of_the_specification_added(store: Store, layout: Layout) -> None:
    """Data in descriptors, referrers, artifact types, deprecated media types, SHA-512."""
    config = config_of([BOTTOM])
    config["rootfs"]["diff_ids"] = [digest(BOTTOM, "sha512")]
    about = layout.blob(config, CONFIG)
    where = layout.path / "blobs" / about["digest"].replace(":", "/")
    about["data"] = base64.b64encode(where.read_bytes()).decode()
    where.unlink()
    packed = gzip.compress(BOTTOM)
    name = digest(packed, "sha512")
    (layout.path / "blobs/sha512").mkdir()
    (layout.path / "blobs" / name.replace(":", "/")).write_bytes(packed)
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    layer = {"mediaType": kind, "digest": name, "size": len(packed)}
    image = layout.manifest(about, [layer], annotations=named("x"))
    empty = layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    signature = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": empty,
        "layers": [empty],
        "subject": image,
    }
    about = layout.blob(signature, MANIFEST, artifactType="application/vnd.example.signature")
    layout.index(image, about, {**about, "annotations": named("sha256-1234.sig")})
    loaded = oci.load(store, layout.path)
    assert [each.references for each in loaded] == [("x:latest",)]


def test_attestations_are_passed_over(store: Store, layout: Layout) -> None:
    image, _ = two_platforms(layout)
    provenance = layout.image(
        [files(x="in-toto")],
        platform={"architecture": "unknown", "os": "unknown"},
        annotations={"vnd.docker.reference.type": "attestation-manifest"},
    )
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [image, provenance]}
    layout.index(layout.blob(index, INDEX, annotations=named("x")))
    assert names_in(store, load_one(store, layout.path).image) == [["a", "b"]]


def test_names(store: Store, layout: Layout) -> None:
    image = layout.image([BOTTOM])
    other = layout.image([TOP])
    full = {
        "io.containerd.image.name": "docker.io/library/debian:12",
        "org.opencontainers.image.ref.name": "12",
    }
    layout.index(
        {**image, "annotations": full},
        {**image, "annotations": named("quay.io/some/thing:1")},
        {**other, "annotations": named("latest")},
    )
    loaded = oci.load(store, layout.path)
    assert [each.references for each in loaded] == [
        ("debian:12", "quay.io/some/thing:1"),
        ("latest:latest",),
    ]
    assert_refused(store, layout.path, "holds 2 images", references=["x"])
    assert_refused(store, layout.path, "invalid reference", references=["Not Good"])


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(100),
        lambda data: b"".join(map(zstandard.compress, (data[:700], data[700:]))),
        lambda data: (
            b"\x50\x2a\x4d\x18\x05\0\0\0chunk" + zstandard.compress(data) + b"\x51\x2a\x4d\x18\0\0\0\0"
        ),
    ],
    ids=["gzip members and padding", "zstd frames", "skippable zstd frames"],
)
def test_streams_of_several_parts(store: Store, layout: Layout, pack: Callable[[bytes], bytes]) -> None:
    config = layout.blob(config_of([BOTTOM]), CONFIG)
    layout.index(layout.manifest(config, [layout.blob(pack(BOTTOM), LAYER + "+gzip")]))
    assert names_in(store, load_one(store, layout.path).image) == [["a", "b"]]


def test_an_archive_without_an_end_marker(store: Store, layout: Layout) -> None:
    bare = BOTTOM.rstrip(b"\0")
    bare += bytes(-len(bare) % 512)
    assert names_in(store, load_one(store, layout.index(layout.image([bare]))).image) == [["a", "b"]]


def test_what_follows_the_end_marker_is_nothing(store: Store, layout: Layout) -> None:
    data = BOTTOM + files(hidden="x") + b"garbage"
    assert names_in(store, load_one(store, layout.index(layout.image([data]))).image) == [["a", "b"]]


def test_the_manifest_is_that_of_the_tree(store: Store, layout: Layout) -> None:
    """Digests are computed while files are written: they have to be those of what is there."""
    members = [({"name": f"d/{at}"}, bytes([at]) * at * 5000) for at in range(20)]
    image = load_one(store, layout.index(layout.image([archive(*members)]))).image
    layer = store.layers_of(image)[0]
    assert list(manifest.read(layer.path.parent / "manifest")) == list(manifest.records(layer.path))
    assert store.layer_size(layer.id) == sum(at * 5000 for at in range(20))


def test_progress(store: Store, layout: Layout) -> None:
    seen: list[tuple[int, int]] = []
    layout.index(layout.image([BOTTOM, TOP], pack=""))
    load_one(store, layout.path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(BOTTOM) + len(TOP),) * 2


def test_an_image_without_layers(store: Store, layout: Layout) -> None:
    image = load_one(store, layout.index(layout.image([], config=config_of([], history=None)))).image
    assert (image.layers, len(store.history(image))) == ((), 1)
