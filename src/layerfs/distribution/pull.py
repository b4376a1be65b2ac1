"""Pull: skopeo copies an image into a layout beside the store's layers, and that is loaded.

Layers that the store has are not fetched again: skopeo takes a blob that lies in the layout already for
done, and loading never opens the blobs of layers that it shares, so an empty file stands for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerfs import oci
from layerfs.archive.limits import Limits
from layerfs.distribution import origins, skopeo
from layerfs.distribution.access import Access
from layerfs.distribution.lookup import Found, Registry
from layerfs.distribution.named import Named
from layerfs.distribution.progress import Downloads, Report, short
from layerfs.distribution.skopeo import Options
from layerfs.errors import BadRequest, LayerfsError, NotFound
from layerfs.oci import Loaded
from layerfs.store import Store, elsewhere
from layerfs.store.references import repository


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that was pulled."""

    id: str
    is_new: bool
    """Whether its name means another image than before."""
    left_out: int = 0
    """Device nodes that are not in its layers, because an ordinary user cannot make them."""


def pull(
    store: Store,
    named: Named,
    access: Access,
    *,
    platform: str | None,
    limits: Limits,
    report: Report,
    doing: str,
    name: str | None = None,
) -> list[Pulled]:
    """Bring the image *named*, or all of its repository, into the store, as `docker pull` does.

    Says so in *report*, first once it is known that there is such an image. It is called as it is there, or
    *name* (`repository:tag`). An image that unpacks to more than *limits* is refused. *doing* this is what
    errors say. On failure, and when *report* raises, the store is as it was. Raises `LayerfsError`.
    """
    skopeo.check(doing)
    with store.scratch() as scratch, access.options(named, scratch) as options:
        registry = Registry(named, options, scratch, doing, report.check)
        wanted = [named]
        if named.tag is None and named.digest is None:
            wanted = [named.tagged(tag) for tag in registry.tags()]
        pulled = []
        for one in wanted:
            found = Registry(one, options, scratch, doing, report.check).find(platform)
            report.say(f"Pulling from {one.path}", one.tag or one.digest or "")
            reference = name or (str(one) if one.tag else None)
            pulled.append(_pull_found(store, one, reference, found, options, limits, report, doing))
            report.say(f"Digest: {found.descriptor.digest}")
        is_new = any(one.is_new for one in pulled)
        what = "Downloaded newer image" if is_new else "Image is up to date"
        report.say(f"Status: {what} for {named}")
    return pulled


def _pull_found(
    store: Store,
    named: Named,
    reference: str | None,
    found: Found,
    options: Options,
    limits: Limits,
    report: Report,
    doing: str,
) -> Pulled:
    """Bring an image that was looked up into the store."""
    by_digest = f"{named.repository}@{found.descriptor.digest}"
    # It goes with the last tag of its repository: an image that is called otherwise here does not get it.
    digests = [by_digest] if reference is None or repository(reference) == named.repository else []
    try:
        before = store.resolve(reference or by_digest).id
    except NotFound:
        before = None
    image = elsewhere.find_image(store.database, found.config.data)
    if image is not None:
        try:
            if reference and image.id != before:
                store.tag(image.id, reference)
            for name in set(digests) - set(image.digests):
                store.note_digest(image.id, name)
            return Pulled(image.id, image.id != before)
        except NotFound:  # it has just been removed
            pass
    present = elsewhere.shared_layers(store.database, found.config.diff_ids)
    chain = elsewhere.chain_ids(found.config.diff_ids)
    known = [blob.digest for blob, chain_id in zip(found.layers, chain, strict=True) if chain_id in present]
    for blob in found.layers:
        status = "Already exists" if blob.digest in known else "Pulling fs layer"
        report.say(status, short(blob.digest), current=0)
    names = [reference] if reference else [], digests
    try:
        loaded = _bring(store, found, names, options, known, limits, report, doing)
    except BadRequest:
        again = elsewhere.shared_layers(store.database, found.config.diff_ids)
        if not known or present.keys() <= again.keys():
            raise
        # A layer was removed from the store meanwhile, and its blob is needed after all.
        known = []
        loaded = _bring(store, found, names, options, known, limits, report, doing)
    for blob in found.layers:
        if blob.digest not in known:
            report.say("Pull complete", short(blob.digest), current=0)
    return Pulled(loaded.image.id, loaded.image.id != before, loaded.left_out)


def _bring(
    store: Store,
    found: Found,
    names: tuple[Sequence[str], Sequence[str]],
    options: Options,
    known: Sequence[str],
    limits: Limits,
    report: Report,
    doing: str,
) -> Loaded:
    """Copy an image, but for the blobs *known*, and load it under *names*: by tag, and by digest."""
    missing = [blob for blob in found.layers if blob.digest not in known]
    said: dict[str, int] = {}

    def unpacking(state: Sequence[tuple[str, int, int]]) -> None:
        report.check()
        for digest, done, size in state:
            if done and said.get(digest) != done:
                said[digest] = done
                report.say("Extracting", short(digest), current=done, total=size)

    with store.scratch() as scratch:
        layout = scratch.path / "layout"
        _make_room(layout, known)
        skopeo.copy(
            found.image.remote(),
            skopeo.layout(scratch, layout.name),
            options,
            side="src",
            scratch=scratch,
            doing=doing,
            progress=False,
            watch=Downloads(layout, missing, report),
        )
        tags, by_digest = names
        loaded = oci.load(
            store, layout, references=tags, digests=by_digest, limits=limits, layer_progress=unpacking
        )
        if len(loaded) != 1:
            raise LayerfsError(f"cannot {doing}: skopeo brought {len(loaded)} images instead of one")
        origins.note(store, loaded[0].image, found.image.host, layout)
        return loaded[0]


def _make_room(layout: Path, known: Sequence[str]) -> None:
    """Put an empty file into a layout for each blob that is *known*: skopeo takes it for done."""
    for digest in known:
        blob = layout / "blobs" / digest.replace(":", "/")
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.touch()
