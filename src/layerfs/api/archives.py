"""Routes of `docker save` and `docker load`: archives of images, which come and go as streams."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from layerfs.api import apart
from layerfs.api.progress import JSON_LINES, Lines, error_line
from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest, LayerfsError
from layerfs.unixhttp.message import Answer, Query, Response, Stream

if TYPE_CHECKING:
    from layerfs.archive.limits import Limits
    from layerfs.oci import Loaded

_TAR = (("Content-Type", "application/x-tar"),)
_PIECE = 1 << 18


def save(call: Call) -> Answer:
    """Return the images that *call* names as one archive: of `docker save`, or as `format` says.

    A layout (oci-dir) comes as an archive of it, unless it is written in place. `compression` is that of the
    layers: none, gzip or zstd.
    """
    names = [call.names["name"]] if "name" in call.names else call.query.all("names")
    if not names:
        raise BadRequest("no images are named: give the parameter names")
    for name in names:
        call.store.resolve(name)
    form, compression = call.query.get("format") or "docker-archive", call.query.get("compression") or None
    sink = call.request.sink
    if sink is not None:
        from layerfs import oci

        oci.save(call.store, names, sink, format=form, compression=compression)
        return Response(200, headers=_TAR)
    if not call.place.alone:
        return apart.answer(call)
    pieces = _saved(call, names, "oci-archive" if form == "oci-dir" else form, compression)
    next(pieces)
    return Stream(200, pieces, _TAR)


def _saved(
    call: Call, names: Sequence[str], form: str, compression: str | None
) -> Generator[bytes, None, None]:
    """Yield nothing once the archive is whole, in a nameless file, and then the archive."""
    from layerfs import oci

    with tempfile.TemporaryFile(dir=call.store.root) as file:
        oci.save(call.store, names, cast(BinaryIO, file), format=form, compression=compression)
        file.seek(0)
        yield b""
        while piece := file.read(_PIECE):
            yield piece


def load(call: Call) -> Answer:
    """Load the images of the archive that comes with *call*; answer as dockerd does, a JSON object a line.

    `tag` is a name for the image instead of those it brings along, `untagged` gives it none. Without `quiet`
    it is told how far the layers are. What goes wrong is the last line: docker-py raises `ImageLoadError` for
    that, and not for a status.
    """
    source: Path | BinaryIO | None = call.request.source or cast("BinaryIO | None", call.request.upload)
    if source is None:
        raise BadRequest("no archive came with the request: use 'layerfs load'")
    if not call.place.alone:
        return apart.answer(call)
    platform = call.query.get("platform")
    wanted = _platform(platform) if platform else None
    most = _limits(call.query)
    early = call.request.source is not None
    tags = call.query.all("tag") or ([] if call.query.flag("untagged") else None)
    quiet = call.query.flag("quiet")

    def work(lines: Lines) -> None:
        from layerfs import oci
        from layerfs.store import Store

        with Store(call.root) as store:
            notes = store.recover()
            if early:
                lines.notes(notes)
            loaded = oci.load(
                store,
                source,
                platform=wanted,
                references=tags,
                limits=most,
                progress=lines.bytes_done("Loading" if early and not quiet else None),
                layer_progress=lines.layers_done(None if quiet else "Loading layer"),
            )
        if not early:  # before the upload is read, nothing may be said: its end is not read after that
            lines.notes(notes)
        for each in loaded:
            _tell(lines, each)

    try:
        return Stream(200, Lines.of(work), JSON_LINES)
    except LayerfsError as error:
        return Response(200, error_line(error), JSON_LINES)


def _limits(query: Query) -> Limits:
    """Return how much an archive may unpack to: `maxsize` bytes in `maxfiles` files. Raises `BadRequest`."""
    from layerfs.archive.limits import Limits

    given = {}
    for name in ("maxsize", "maxfiles"):
        if text := query.get(name):
            if not (text.isascii() and text.isdigit() and int(text) > 0):
                raise BadRequest(f"invalid value for {name!r}: {text[:100]!r} is no number above 0")
            given[name.removeprefix("max")] = int(text)
    return Limits(**given)


def _tell(lines: Lines, loaded: Loaded) -> None:
    for reference in loaded.references:
        lines.put({"stream": f"Loaded image: {reference}\n"})
    if not loaded.references:
        lines.put({"stream": f"Loaded image ID: sha256:{loaded.image.id}\n"})
    lines.put({"aux": {"ID": f"sha256:{loaded.image.id}", "LeftOut": loaded.left_out}})


def _platform(text: str) -> str:
    """Return the platform that a client has written as an object of the OCI image spec, or as OS/ARCH."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        fields: dict[str, Any] = json.loads(text)
        parts = [fields["os"], fields["architecture"], fields.get("variant") or ""]
        return "/".join(part for part in parts if part)
    except (ValueError, TypeError, KeyError):
        raise BadRequest(f"invalid platform: {text}") from None


ROUTES = (
    route("GET", "/images/get", save),
    route("GET", "/images/{name}/get", save),
    route("POST", "/images/load", load, upload=True),
)
