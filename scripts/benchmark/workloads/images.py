"""Images come in and go out: `load` beside `skopeo copy` and `umoci unpack`, `save` beside `buildah push`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..measure import timed
from ..peers import command
from ..registry import Row, Stage, workload
from ..targets import LOAD, SAVE
from ..trees import make_directories

IMAGE = "bench:image"
FILES = 40  # a MiB
TEXT = b"A line as there are many in the files of a root filesystem.\n"


def make_image(stage: Stage) -> Path:
    """Return a tree of files of 25 KiB, a third of each random, that is as large as the image is to be."""
    tree = stage.stack.upper / "image"
    count = stage.sizes.image * FILES
    names = [f"d{number % 100}/f{number}" for number in range(count)]
    make_directories(tree, names)
    half = (1 << 20) // FILES // 3
    text = (TEXT * half)[: 2 * half]
    for name in names:
        (tree / name).write_bytes(os.urandom(half) + text)
    return tree


def with_image(stage: Stage) -> Path:
    """Have the image in the store; return a gzipped OCI archive of it."""
    archive = stage.stack.upper / "image.tar"
    command("layerfs", "import", make_image(stage), IMAGE)
    command("layerfs", "save", IMAGE, "-o", archive, "--format", "oci-archive")
    return archive


def forget_images() -> None:
    """Remove all images from the store."""
    if images := command("layerfs", "images", "-q").split():
        command("layerfs", "rmi", "-f", *images)


@workload("empty", Row("load 200 MB image", LOAD), peers=("layerfs", "umoci"), costly=True)
def load(stage: Stage) -> float:
    """From a gzipped OCI archive to a tree that can be mounted.

    Nothing is removed shortly before: ext4 is slow to make files while it remembers removed ones.
    """
    archive = with_image(stage)
    place = stage.stack.upper
    try:
        if stage.peer == "layerfs":
            return timed(lambda: command("layerfs", "--root", place / "store", "load", archive))

        def copy_and_unpack() -> None:
            layout = f"{place}/layout:image"
            command("skopeo", "--insecure-policy", "copy", f"oci-archive:{archive}", f"oci:{layout}")
            command("umoci", "unpack", "--image", layout, place / "bundle")

        return timed(copy_and_unpack)
    finally:
        forget_images()


@workload("empty", Row("save 200 MB image", SAVE), peers=("layerfs", "buildah"), costly=True)
def save(stage: Stage) -> float:
    """From the store to a gzipped OCI archive."""
    archive = with_image(stage)
    target = stage.stack.upper / "saved.tar"
    if stage.peer == "layerfs":
        try:
            return timed(lambda: command("layerfs", "save", IMAGE, "-o", target, "--format", "oci-archive"))
        finally:
            forget_images()
    forget_images()
    store = stage.stack.upper
    policy = store / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    buildah = ("buildah", "--root", store / "root", "--runroot", store / "run", "--storage-driver", "overlay")
    name = command(*buildah, "pull", "-q", "--signature-policy", policy, f"oci-archive:{archive}").split()[-1]
    push = ("push", "-q", "--signature-policy", policy, name, f"oci-archive:{target}")
    return timed(lambda: command(*buildah, *push))
