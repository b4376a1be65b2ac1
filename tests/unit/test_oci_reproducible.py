"""Images with SOURCE_DATE_EPOCH: the same files make the same image, whenever and wherever they are built."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from layerfs import oci
from layerfs.oci.reproducible import make_image
from layerfs.store import Store
from layerfs.store.model import Image
from tests.unit.steps_support import problems

EPOCH = datetime(2020, 2, 2, tzinfo=UTC)
_HOUR = 3600 * 10**9


def build(store: Store, base: Image, moment: int, *, first: str = "one") -> Image:
    """Build an image of two layers whose files were all written at *moment*."""
    with store.building():
        bottom = below = store.steps.step_of(base)
        for name in (first, "two"):
            with store.steps.new_layer(below) as new:
                (new.path / "etc").mkdir()
                (new.path / "etc" / name).write_text(name)
                os.link(new.path / "etc" / name, new.path / "etc/link")
                (new.path / "old").write_text("from the context")
                (new.path / "symbolic").symlink_to("nowhere")
                for root, directories, files in os.walk(new.path, topdown=False):
                    for it in (*directories, *files):
                        os.utime(os.path.join(root, it), ns=(moment, moment), follow_symlinks=False)
                os.utime(new.path / "old", (5, 5))
                os.utime(new.path, ns=(moment, moment))
                below = store.steps.seal_layer(new, below, created=EPOCH, created_by=f"COPY {name}")
            store.build_cache.put(name, below)
        return make_image(
            store,
            below,
            {"Cmd": ["sh"]},
            base=bottom,
            epoch=EPOCH,
            platform=("amd64", "linux"),
            references=["app"],
            comment="buildkit",
        )


@pytest.fixture
def layout(store: Store, base: Image, tmp_path: Path) -> Path:
    """An image as everybody gets it."""
    oci.save(store, [base.id], tmp_path / "base", format="oci-dir")
    return tmp_path / "base"


def test_two_stores_make_the_same_image(layout: Path, tmp_path: Path) -> None:
    made = []
    for number in range(2):
        with Store(tmp_path / f"store-{number}") as store:
            base = oci.load(store, layout)[0].image
            made.append(build(store, base, int(EPOCH.timestamp()) * 10**9 + _HOUR * (1 + number)))
            top = store.layers_of(made[-1])[-1].path
            assert {path.name: path.lstat().st_mtime for path in top.iterdir()} == {
                "etc": EPOCH.timestamp(),
                "old": 5.0,
                "symbolic": EPOCH.timestamp(),
            }
            for layer in made[-1].layers:
                store.settle_layer(layer)
            assert list(store.verify(made[-1].id)) == []
            assert problems(store) == []
            assert made[-1].created == EPOCH
    assert made[0].id == made[1].id
    assert made[0].layers != made[1].layers


def test_it_is_the_same_after_save_and_load(layout: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "here") as store:
        image = build(store, oci.load(store, layout)[0].image, int(EPOCH.timestamp()) * 10**9 + _HOUR)
        assert store.resolve(image.id[:12]).tags == ("app:latest",)
        oci.save(store, ["app"], tmp_path / "app.tar")
        assert store.resolve("app").id == image.id
    with Store(tmp_path / "there") as store:
        assert [loaded.image.id for loaded in oci.load(store, tmp_path / "app.tar")] == [image.id]
        again = build(store, oci.load(store, layout)[0].image, int(EPOCH.timestamp()) * 10**9 + 2 * _HOUR)
        assert again.id == image.id
        assert again.layers == store.resolve("app").layers
    with Store(tmp_path / "here") as store:
        other = build(store, oci.load(store, layout)[0].image, 10**18, first="other")
        assert other.id != image.id


def test_a_layer_of_a_killed_build_gets_its_times_later(layout: Path, tmp_path: Path) -> None:
    """It may have been settled meanwhile: then its manifest is made anew."""
    late = int(EPOCH.timestamp()) * 10**9 + _HOUR
    with Store(tmp_path / "here") as store, store.building():
        base = oci.load(store, layout)[0].image
        bottom = store.steps.step_of(base)
        with store.steps.new_layer(bottom) as new:
            (new.path / "file").write_text("x")
            os.utime(new.path / "file", ns=(late, late))
            step = store.steps.seal_layer(new, bottom, created=EPOCH, created_by="COPY file")
        store.settle_layer(new.id)
        assert store.layer(new.id).manifest_done
        image = make_image(
            store, step, {}, base=bottom, epoch=EPOCH, platform=("amd64", "linux"), references=["x"]
        )
        assert not store.layer(new.id).manifest_done
        store.settle_layer(new.id)
        assert (new.path / "file").stat().st_mtime == EPOCH.timestamp()
        assert list(store.verify(image.id)) == []
