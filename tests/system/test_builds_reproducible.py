"""SOURCE_DATE_EPOCH: the same context and base give the same image in two stores, at two times."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.system.builds import HEAD, Built, builds
from tests.system.containers import IMAGE

pytestmark = pytest.mark.root

EPOCH = "1700000000"
DOCKERFILE = (
    HEAD
    + "WORKDIR /app\nCOPY . .\nENV A=1\nRUN mkdir made && cat message > made/out && ln made/out made/link\n"
    + "RUN echo again >> made/out && rm message\nCMD cat made/out\n"
)


def test_two_stores_make_the_same_image(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    archive = tmp_path / "base.tar"
    made: list[Built] = []
    with builds(places[0]) as (first, _), builds(places[1]) as (second, _):
        first.layerfs.ok("save", IMAGE, "-o", archive)
        second.layerfs.ok("load", "-i", archive)
        for there in (first, second):
            context = {"message": "hello\n", "directory/file": "x"}
            made.append(there.ok(DOCKERFILE, "-t", "app", files=context, env={"SOURCE_DATE_EPOCH": EPOCH}))
            time.sleep(1.1)  # what is written now has another time
        assert made[0].image == made[1].image
        assert made[0].run() == "hello\nagain\n"
        again = first.ok(DOCKERFILE, files=context, env={"SOURCE_DATE_EPOCH": EPOCH})
        assert again.image == made[0].image
        history = json.loads(first.layerfs.ok("image", "inspect", "app"))[0]
        assert history["Created"].startswith("2023-11-14T22:13:20")
        app = tmp_path / "app.tar"
        first.layerfs.ok("save", "app", "-o", app)
        assert made[0].image[:12] in second.layerfs.ok("images", "-q")
        second.layerfs.ok("rmi", "-f", "app")
        second.layerfs.ok("load", "-i", app)
        assert second.inspect("app")["Id"] == f"sha256:{made[0].image}"
        without = second.ok(DOCKERFILE, files=context)
        assert without.image != made[0].image
        for there in (first, second):
            there.layerfs.check_store()
