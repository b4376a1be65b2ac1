"""What a daemon does beside serving: that what has gone meanwhile holds up nothing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from layerfs.mounting.background import Background, Served
from layerfs.store import Store
from layerfs.union.layer import Layer


def _nothing_is_served() -> Served:
    raise AssertionError("nobody asks")


async def test_the_root_of_an_upper_that_was_discarded_is_not_synced(tmp_path: Path) -> None:
    """Else every fsync would fail from then on: a checkpoint, and going back that discards right after it."""
    with Store(tmp_path / "store") as store:
        background = Background(store.root, store.database.layers, _nothing_is_served, makes_ahead=False)
        with closing(background):
            place = tmp_path / "upper"
            place.mkdir()
            layer = Layer(place)
            background.has_new_upper(layer)
            layer.close()
            place.rmdir()
            await background.store_sync.wait()
            assert background.store_sync.is_done
            assert not background.is_committing
