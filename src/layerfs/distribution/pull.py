"""Pull: skopeo copies an image into a layout beside the store's layers, and that is loaded.

Layers that the store has are not fetched again: skopeo takes a blob that lies in the layout already for
done, and loading never opens the blobs of layers that it shares, so an empty file stands for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from layerfs import oci
from layerfs.archive.limits import Limits
from layerfs.distribution import origins, skopeo
from layerfs.distribution.credentials import Credentials
from layerfs.distribution.lookup import Found, Registry
from layerfs.distribution.named import Named
from layerfs.distribution.progress import Downloads, Report, short
from layerfs.distribution.remotes import Remote
from layerfs.distribution.skopeo import Options
from layerfs.errors import BadRequest, LayerfsError, NotFound
from layerfs.oci import Loaded
from layerfs.oci.config import Config
from layerfs.store import Store, elsewhere
from layerfs.store.references import normalize
from layerfs.store.scratch import Scratch

_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})")


def pull(
    store: Store,
    source: Remote,
    name: str | None,
    options: Options,
    *,
    limits: Limits,
    progress: bool,
) -> Loaded:
    """Bring the image *source* into the store, where it is called *name*, or else as it is there.

    An image that unpacks to more than *limits* is refused. With *progress*, standard error shows how far
    it is. On failure the store is as it was. Raises `LayerfsError`.
    """
    reference = normalize(name) if name is not None else source.image_name()
    skopeo.check(f"pull {source}")
    references = [reference] if reference is not None else []
    with store.scratch() as scratch:
        known = _known_blobs(store, source, options, scratch)
        try:
            layout = _fetch(source, options, scratch, known, progress)
            return _load(store, source, layout, references, options, limits)
        except BadRequest:
            if not known or _known_blobs(store, source, options, scratch) == known:
                raise
        # A layer was removed from the store meanwhile, and its blob is needed after all.
        layout = _fetch(source, options, scratch, [], progress)
        return _load(store, source, layout, references, options, limits)


def pull_named(
    store: Store,
    named: Named,
    credentials: Credentials,
    *,
    platform: str | None,
    limits: Limits,
    report: Report,
) -> None:
    """Bring the image *named*, or all of its repository, into the store, as `docker pull` does.

    Says so in *report*, first once it is known that there is such an image. On failure, and when *report*
    raises, the store is as it was. Raises `LayerfsError`.
    """
    doing = f"pull {named}"
    skopeo.check(doing)
    with credentials.file(named.host) as authfile, store.scratch() as scratch:
        options = skopeo.access(named.is_local, authfile)
        registry = Registry(named, options, scratch, doing, report.check)
        wanted = [named]
        if named.tag is None and named.digest is None:
            wanted = [named.tagged(tag) for tag in registry.tags()]
        is_new = False
        for one in wanted:
            found = Registry(one, options, scratch, doing, report.check).find(platform)
            report.say(f"Pulling from {one.path}", one.tag or one.digest or "")
            is_new |= _pull_found(store, one, found, options, limits, report, doing)
            report.say(f"Digest: {found.descriptor.digest}")
        what = "Downloaded newer image" if is_new else "Image is up to date"
        report.say(f"Status: {what} for {named}")


def _pull_found(
    store: Store, named: Named, found: Found, options: Options, limits: Limits, report: Report, doing: str
) -> bool:
    """Bring an image that was looked up into the store; return whether its name means another one now."""
    reference = str(named) if named.tag else None
    try:
        before = store.resolve(reference).id if reference else None
    except NotFound:
        before = None
    image = elsewhere.find_image(store.database, found.config.data)
    if image is not None:
        try:
            if reference and image.id != before:
                store.tag(image.id, reference)
            return image.id != before if reference else False
        except NotFound:  # it has just been removed
            pass
    present = elsewhere.shared_layers(store.database, found.config.diff_ids)
    chain = elsewhere.chain_ids(found.config.diff_ids)
    known = [blob.digest for blob, chain_id in zip(found.layers, chain, strict=True) if chain_id in present]
    for blob in found.layers:
        status = "Already exists" if blob.digest in known else "Pulling fs layer"
        report.say(status, short(blob.digest), current=0)
    try:
        loaded = _bring(store, found, reference, options, known, limits, report, doing)
    except BadRequest:
        again = elsewhere.shared_layers(store.database, found.config.diff_ids)
        if not known or present.keys() <= again.keys():
            raise
        # A layer was removed from the store meanwhile, and its blob is needed after all.
        known = []
        loaded = _bring(store, found, reference, options, known, limits, report, doing)
    for blob in found.layers:
        if blob.digest not in known:
            report.say("Pull complete", short(blob.digest), current=0)
    return loaded.image.id != before


def _bring(
    store: Store,
    found: Found,
    reference: str | None,
    options: Options,
    known: Sequence[str],
    limits: Limits,
    report: Report,
    doing: str,
) -> Loaded:
    """Copy an image, but for the blobs *known*, and load it."""
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
        source = found.image.remote()
        references = [reference] if reference else []
        loaded = oci.load(store, layout, references=references, limits=limits, layer_progress=unpacking)
        return _only(loaded, source, layout, store)


def _known_blobs(store: Store, source: Remote, options: Options, scratch: Scratch) -> list[str]:
    """Return the digests of the blobs of *source*, an image in a registry, that need not be fetched."""
    if source.transport != "docker" or not store.images():
        return []
    doing = f"pull {source}"
    try:
        config = Config.parse(
            skopeo.inspect(source, options, "--config", "--raw", scratch=scratch, doing=doing)
        )
        present = set(elsewhere.shared_layers(store.database, config.diff_ids))
        if elsewhere.find_image(store.database, config.data) is not None:
            present = set(config.diff_ids)
        if not present:
            return []
        blobs = skopeo.layers(source, options, scratch=scratch, doing=doing)
    except BadRequest:
        return []  # whatever it is, loading it will say
    if len(blobs) != len(config.diff_ids):
        return []
    return [
        blob for blob, diff_id in zip(blobs, config.diff_ids, strict=True)
        if diff_id in present and _DIGEST.fullmatch(blob)
    ]  # fmt: skip


def _fetch(source: Remote, options: Options, scratch: Scratch, known: Sequence[str], progress: bool) -> Path:
    """Copy the image *source*, but for the blobs *known*, into a layout, and return that."""
    name = "part" if known else "whole"
    layout = scratch.path / name
    _make_room(layout, known)
    target = skopeo.layout(scratch, name)
    doing = f"pull {source}"
    skopeo.copy(source, target, options, side="src", scratch=scratch, doing=doing, progress=progress)
    return layout


def _make_room(layout: Path, known: Sequence[str]) -> None:
    """Put an empty file into a layout for each blob that is *known*: skopeo takes it for done."""
    for digest in known:
        blob = layout / "blobs" / digest.replace(":", "/")
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.touch()


def _load(
    store: Store, source: Remote, layout: Path, references: Sequence[str], options: Options, limits: Limits
) -> Loaded:
    loaded = oci.load(store, layout, platform=options.platform, references=references, limits=limits)
    return _only(loaded, source, layout, store)


def _only(loaded: Sequence[Loaded], source: Remote, layout: Path, store: Store) -> Loaded:
    if len(loaded) != 1:
        raise LayerfsError(f"cannot pull {source}: skopeo brought {len(loaded)} images instead of one")
    if (registry := source.registry()) is not None:
        origins.note(store, loaded[0].image, registry, layout)
    return loaded[0]
