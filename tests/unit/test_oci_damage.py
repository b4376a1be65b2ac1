"""Images that are damaged or lie: one clear line each, and the store is as it was."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs import oci
from layerfs.errors import BadRequest
from layerfs.store import Store, imageconfig
from tests.unit.oci_support import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    PACKERS,
    Json,
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

GOOD = files(a="a", b="b")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty layout."""
    return Layout(tmp_path / "layout")


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("how", ["cut", "flipped", "longer"])
def test_a_damaged_layer(store: Store, layout: Layout, pack: str, how: str) -> None:
    layer = archive(*(({"name": f"f{at}"}, os.urandom(5000)) for at in range(5)))
    packed = PACKERS[pack](layer)
    middle = len(packed) // 2
    damaged = {
        "cut": packed[:-40],
        "flipped": packed[:middle] + bytes([packed[middle] ^ 1]) + packed[middle + 1 :],
        "longer": packed + b"more",
    }[how]
    descriptor = layout.image([layer], pack=pack)
    layout.index(descriptor)
    blob = layout.path / "blobs" / digest(packed).replace(":", "/")
    blob.write_bytes(damaged)
    says = "damaged|it is|ends too early|bytes, not"
    assert_refused(store, layout.path, says)
    about = layout.blob(damaged, LAYER + pack)  # with a digest that is right for it
    layout.index(layout.manifest(layout.blob(config_of([layer]), CONFIG), [about]))
    assert_refused(store, layout.path, "damaged")


def test_another_layer_than_the_configuration_says(store: Store, layout: Layout, tmp_path: Path) -> None:
    config = config_of([files(x="other")])
    assert_refused(store, layout.index(layout.image([GOOD], config=config)), "does not have the diff ID")
    source = docker_archive(tmp_path / "x.tar", [GOOD], ["x"], config)
    assert_refused(store, source, "does not have the diff ID")


def test_one_bad_image_of_several(store: Store, layout: Layout) -> None:
    """Nothing of an archive is loaded, or all of it."""
    good = layout.image([GOOD, files(c="c")], annotations=named("good"))
    bad = layout.image([GOOD], config=config_of([files(x="other")]), annotations=named("bad"))
    assert_refused(store, layout.index(good, bad), "does not have the diff ID")


def test_an_archive_cut_short_anywhere(store: Store, layout: Layout, tmp_path: Path) -> None:
    path = layout.index(layout.image([GOOD], annotations=named("x")))
    whole = as_archive(path, tmp_path / "x.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512
    cut = tmp_path / "cut.tar"
    for length in range(0, end, 512):
        cut.write_bytes(whole[:length])
        assert_refused(store, cut, "damaged|not an image|missing|no index.json|ends too early")


# Documents


def broken_manifest(change: Callable[[Json], object]) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        config = layout.blob(config_of([GOOD]), CONFIG)
        layer = layout.blob(gzip.compress(GOOD), LAYER + "+gzip")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        change(manifest)
        layout.index(layout.blob(manifest, MANIFEST))

    return make


def broken_config(change: Callable[[Json], object]) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        config = config_of([GOOD])
        change(config)
        layout.index(layout.image([GOOD], config=config))

    return make


def broken_index(change: Callable[[Json], object]) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        entry = layout.image([GOOD])
        index = {"schemaVersion": 2, "manifests": [entry]}
        change(index)
        layout.top(index)

    return make


def nested(depth: int) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        entry = layout.image([GOOD])
        for _ in range(depth):
            entry = layout.blob({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}, INDEX)
        layout.index(entry)

    return make


def raw_index(text: str) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        (layout.path / "index.json").write_text(text)

    return make


DOCUMENTS: dict[str, tuple[Callable[[Layout], None], str]] = {
    "no layers": (broken_manifest(lambda m: m.pop("layers")), "manifest has 0 layers, .* diff IDs for 1"),
    "more layers": (broken_manifest(lambda m: m["layers"].append(m["layers"][0])), "manifest has 2 layers"),
    "no config": (broken_manifest(lambda m: m.pop("config")), "the configuration has no size"),
    "schema 1": (broken_manifest(lambda m: m.update(schemaVersion=1)), "schema version 1, not 2"),
    "another type": (broken_manifest(lambda m: m.update(mediaType=INDEX)), "says that it is"),
    "unknown layer": (
        broken_manifest(lambda m: m["layers"][0].update(mediaType=LAYER + "+lz4")),
        "the media type .*lz4', which is not known",
    ),
    "no media type": (broken_manifest(lambda m: m["layers"][0].pop("mediaType")), "media type ''"),
    "unknown algorithm": (
        broken_manifest(lambda m: m["layers"][0].update(digest="md5:" + "0" * 32)),
        "no digest that is known",
    ),
    "a digest that is a path": (
        broken_manifest(lambda m: m["layers"][0].update(digest="sha256:../../../../etc/passwd")),
        "no digest that is known",
    ),
    "wrong size": (broken_manifest(lambda m: m["layers"][0].update(size=5)), "bytes, not 5"),
    "negative size": (broken_manifest(lambda m: m["layers"][0].update(size=-1)), "has no size"),
    "size of another type": (broken_manifest(lambda m: m["layers"][0].update(size=True)), "has no size"),
    "missing layer": (
        broken_manifest(lambda m: m["layers"][0].update(digest="sha256:" + "0" * 64)),
        "a layer is missing: there is no blobs/sha256/0000",
    ),
    "config of wrong size": (broken_manifest(lambda m: m["config"].update(size=1)), "bytes, not 1"),
    "an artifact": (
        broken_manifest(lambda m: m["config"].update(mediaType="application/vnd.oci.empty.v1+json")),
        "no image but an artifact of type 'application/vnd.oci.empty",
    ),
    "missing diff IDs": (
        broken_config(lambda c: c["rootfs"].update(diff_ids=[])),
        "diff IDs for 0|makes 1 layers",
    ),
    "extra diff IDs": (
        broken_config(lambda c: c["rootfs"]["diff_ids"].append(digest(b""))),
        "diff IDs for 2",
    ),
    "no rootfs": (broken_config(lambda c: c.pop("rootfs")), "no rootfs"),
    "another rootfs": (
        broken_config(lambda c: c["rootfs"].update(type="windows")),
        "no rootfs of type 'layers'",
    ),
    "diff IDs of another type": (broken_config(lambda c: c["rootfs"].update(diff_ids="x")), "not an array"),
    "history of another type": (broken_config(lambda c: c.update(history=[1])), "not an object"),
    "more history than layers": (
        broken_config(lambda c: c.update(history=[{"created_by": "x"}] * 2)),
        "history makes 2 layers, and it has 1",
    ),
    "no time": (broken_config(lambda c: c.update(created="yesterday")), "is no time"),
    "a time that is none": (broken_config(lambda c: c.update(created="2024-13-41T00:00:00Z")), "is no time"),
    "config of another type": (broken_config(lambda c: c.update(config=["x"])), "not an object"),
    "architecture of another type": (broken_config(lambda c: c.update(architecture=5)), "not a string"),
    "half a character": (broken_config(lambda c: c.update(author="\ud800")), "half a character"),
    "no manifests": (broken_index(lambda i: i.pop("manifests")), "layout is empty"),
    "manifests of another type": (broken_index(lambda i: i.update(manifests={"a": 1})), "not an array"),
    "an index of schema 1": (broken_index(lambda i: i.update(schemaVersion=1)), "schema version 1"),
    "dockers schema 1": (
        broken_index(
            lambda i: i["manifests"][0].update(
                mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"
            )
        ),
        "Docker's schema 1",
    ),
    "an unknown manifest": (
        broken_index(lambda i: i["manifests"][0].update(mediaType="text/plain")),
        "names no image",
    ),
    "a wrong digest": (
        broken_index(lambda i: i["manifests"][0].update(digest="sha256:" + "1" * 64)),
        "the manifest is missing",
    ),
    "nested too deep": (nested(9), "nested more than 8"),
    "no JSON": (raw_index("{"), "index.json is not JSON"),
    "no text": (raw_index("[" * 100_000), "index.json is not JSON"),
    "a long number": (raw_index('{"schemaVersion": ' + "9" * 5000 + "}"), "index.json is not JSON"),
    "an array": (raw_index("[]"), "not a JSON object"),
    "too large": (raw_index(" " * (5 << 20)), "larger than 4 MiB"),
}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_documents(store: Store, layout: Layout, what: str) -> None:
    make, says = DOCUMENTS[what]
    make(layout)
    assert_refused(store, layout.path, says)


def test_a_blob_of_another_digest(store: Store, layout: Layout) -> None:
    entry = layout.image([GOOD])
    layout.index(entry)
    file = layout.path / "blobs" / entry["digest"].replace(":", "/")
    file.write_bytes(file.read_bytes().replace(b'"schemaVersion": 2', b'"schemaVersion":2 '))
    assert_refused(store, layout.path, "does not have the digest")


def test_an_index_that_names_itself(store: Store, layout: Layout) -> None:
    """It cannot be: it would have to hold its own digest."""
    layout.index({"mediaType": INDEX, "digest": digest(b"x"), "size": 1})
    (layout.path / "blobs" / digest(b"x").replace(":", "/")).symlink_to(layout.path / "index.json")
    assert_refused(store, layout.path, "bytes, not 1")


def test_what_is_no_image(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "rootfs.tar").write_bytes(GOOD)
    (tmp_path / "nothing").touch()
    assert_refused(store, tmp_path / "empty", "not an image: .*'layerfs import'")
    assert_refused(store, tmp_path / "rootfs.tar", "not an image: .*'layerfs import'")
    for name in ("text", "nothing"):
        assert_refused(store, tmp_path / name, "not an image|not a tar archive")
    assert_refused(store, tmp_path / "none", "No such file")


def test_blobs_that_are_no_files(store: Store, layout: Layout) -> None:
    entry = layout.image([GOOD])
    layout.index(entry)
    file = layout.path / "blobs" / entry["digest"].replace(":", "/")
    file.unlink()
    os.mkfifo(file)
    assert_refused(store, layout.path, "is not a file")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"Config": "../../etc/passwd"}, "the configuration is missing"),
        ({"Config": None}, "not a string"),
        ({"Config": "0" * 64 + ".json"}, "missing"),
        ({"Layers": []}, "manifest has 0 layers"),
        ({"Layers": ["/etc/passwd"]}, "a layer is missing: there is no /etc/passwd"),
        ({"Layers": "x"}, "not an array"),
        ({"RepoTags": ["Not Good"]}, "invalid reference"),
        ({"RepoTags": [5]}, "not a string"),
    ],
)
def test_listings_of_docker(store: Store, tmp_path: Path, changes: Json, says: str) -> None:
    source = docker_archive(tmp_path / "x.tar", [GOOD], ["x"])
    with tarfile.open(source) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
        with tarfile.open(tmp_path / "y.tar", "w") as other:
            for member, content in members:
                data = content.read() if content else b""
                if member.name == "manifest.json":
                    data = json.dumps([{**json.loads(data)[0], **changes}]).encode()
                member.size = len(data)
                other.addfile(member, io.BytesIO(data))
    assert_refused(store, tmp_path / "y.tar", says)


@pytest.mark.parametrize("target", ["../x/layer.tar", "/etc/passwd", "../../../../../../etc/passwd", "loop"])
def test_links_between_layers_lead_nowhere_else(store: Store, tmp_path: Path, target: str) -> None:
    config = json.dumps(config_of([GOOD])).encode()
    listing = json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": ["l/layer.tar"]}]).encode()
    (tmp_path / "x.tar").write_bytes(
        archive(
            ({"name": "c.json"}, config),
            ({"name": "manifest.json"}, listing),
            ({"name": "l/layer.tar", "type": tarfile.SYMTYPE, "linkname": target}, b""),
            ({"name": "l/loop", "type": tarfile.SYMTYPE, "linkname": "layer.tar"}, b""),
        )
    )
    assert_refused(store, tmp_path / "x.tar", "a layer is missing")


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("User", 5, "User in the image's configuration must be a string, such as .*, not a number: 5"),
        ("User", "a\0b", "User in .* must be a string"),
        ("WorkingDir", [1], r"WorkingDir in .* must be a string, such as \"/srv\", not a list: \[1\]"),
        ("Cmd", "str", "Cmd in .* must be a list of strings, .*, not a string: 'str'"),
        ("Cmd", ["a", 5], "Cmd in .* must be a list of strings"),
        ("Cmd", ["\ud800"], "Cmd in .* must be a list of strings"),
        ("Entrypoint", {"0": "sh"}, "Entrypoint in .* must be a list of strings, .*, not an object"),
        ("Entrypoint", True, "Entrypoint in .* must be a list of strings, .*, not a boolean"),
        ("Env", "A=b", "Env in .* must be a list of strings NAME=VALUE"),
        ("Env", ["=A"], "Env in .* must be a list of strings NAME=VALUE"),
        ("Env", [["A=b"]], "Env in .* must be a list of strings NAME=VALUE"),
        ("Labels", ["a=b"], "Labels in .* must be an object of strings"),
        ("Labels", {"a": 1}, "Labels in .* must be an object of strings"),
        ("ExposedPorts", ["80/tcp"], "ExposedPorts in .* must be an object"),
        ("ExposedPorts", 80, "ExposedPorts in .* must be an object"),
        ("Volumes", ["/data"], "Volumes in .* must be an object"),
        ("StopSignal", 15, "StopSignal in .* must be a string"),
        ("StopSignal", "SIGNOTHING", "StopSignal in .* must be the name or number of a signal"),
        ("StopTimeout", "10", "StopTimeout in .* must be a number of seconds"),
        ("Healthcheck", ["true"], "Healthcheck in .* must be an object"),
        ("Healthcheck", {"Test": "true"}, "Healthcheck in .* must be an object"),
        ("Healthcheck", {"Interval": "5s"}, "Healthcheck in .* must be an object"),
        ("Shell", "sh", "Shell in .* must be a list of strings"),
        ("OnBuild", "RUN x", "OnBuild in .* must be a list of strings"),
        ("X", json.loads("[" * 80 + "]" * 80), "the configuration is nested more than 64 deep"),
        ("X", float("nan"), "the configuration is not JSON"),
        ("X", json.loads("[1e999]"), "the configuration is not JSON"),
    ],
)
def test_a_configuration_that_could_not_be_run_is_refused(
    store: Store, layout: Layout, tmp_path: Path, member: str, value: object, says: str
) -> None:
    config = config_of([GOOD], config={"Cmd": ["sh"], member: value})
    layout.index(layout.image([GOOD], config=config))
    assert_refused(store, layout.path, says)
    archived = docker_archive(tmp_path / "docker.tar", [GOOD], None, config)
    assert_refused(store, archived, says)


def test_oddities_that_docker_takes_are_taken(store: Store, layout: Layout) -> None:
    odd = {
        "User": "", "WorkingDir": "", "StopSignal": "", "Cmd": None, "Entrypoint": None, "Env": None,
        "Labels": {"a": None, "b": ""}, "Volumes": None, "ExposedPorts": {"80": None}, "OnBuild": None,
        "Healthcheck": {"Test": None, "Retries": None}, "ArgsEscaped": True, "Unknown": [{"deep": [1.5]}],
    }  # fmt: skip
    layout.index(layout.image([GOOD], config=config_of([GOOD], config=odd)))
    [loaded] = oci.load(store, layout.path)
    assert loaded.image.config == odd
    layout.index(layout.image([GOOD], config=config_of([GOOD], config={"StopSignal": "SIGRTMIN+3"})))
    oci.load(store, layout.path)
    layout.index(layout.image([GOOD], config=config_of([GOOD], config=None)))
    oci.load(store, layout.path)


def test_a_number_that_json_cannot_write_is_refused() -> None:
    with pytest.raises(BadRequest, match="has a number that is not finite"):
        imageconfig.check({"X": {"Y": [1.0, float("inf")]}})
    with pytest.raises(BadRequest, match="must be an object, not a list"):
        imageconfig.check([])
