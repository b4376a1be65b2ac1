"""Our own routes about registries: what skopeo can be told and Docker's clients cannot say.

Source and target are names in registries. Images elsewhere, in files and other stores, are the client's own:
it brings them in and out as archives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerfs.api.progress import JSON_LINES, Lines
from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest
from layerfs.unixhttp.message import Answer, Stream

if TYPE_CHECKING:
    from layerfs.archive.limits import Limits
    from layerfs.distribution.named import Named


def pull(call: Call) -> Answer:
    """Bring the image `Source` of a registry into the store, called `Name` if that is given.

    Tells how far it is, as `docker pull` does, and at last the image's id.
    """
    from layerfs.distribution.access import OfCommand
    from layerfs.distribution.pull import pull
    from layerfs.oci import platforms
    from layerfs.store.references import normalize

    fields = call.request.json()
    named = _named(fields, "Source")
    given, platform = _text(fields, "Name"), _text(fields, "Platform") or None
    name = normalize(given) if given else None
    platforms.parse(platform)
    access, most = OfCommand.of(fields, own=call.place.alone), _limits(fields)

    def work(lines: Lines) -> None:
        from layerfs.store import Store

        with Store(call.root) as store:
            if call.place.alone:
                lines.notes(store.recover())
            (pulled,) = pull(
                store,
                named,
                access,
                platform=platform,
                limits=most,
                report=lines,
                doing=f"pull {named.remote()}",
                name=name,
            )
        lines.put({"aux": {"ID": f"sha256:{pulled.id}", "LeftOut": pulled.left_out}})

    return Stream(200, Lines.of(work), JSON_LINES)


def push(call: Call) -> Answer:
    """Bring the image `Image` to `Target` in a registry.

    Tells how far it is, as `docker push` does, and at last the digest that it has there.
    """
    from layerfs.distribution.access import OfCommand
    from layerfs.distribution.push import push

    fields = call.request.json()
    named, image = _named(fields, "Target"), _text(fields, "Image")
    call.store.resolve(image)
    access = OfCommand.of(fields, own=call.place.alone)

    def work(lines: Lines) -> None:
        from layerfs.store import Store

        with Store(call.root, create=False) as store:
            pushed = push(store, image, named, access, lines, f"push {image} to {named.remote()}")
        lines.put({"aux": {"Digest": pushed.digest}})

    return Stream(200, Lines.of(work), JSON_LINES)


def _named(fields: dict[str, Any], member: str) -> Named:
    """Return the image that *member* names; the tag is "latest" where there is none, and no digest."""
    from layerfs.distribution.named import Named

    named = Named.parse(_text(fields, member))
    return named if named.tag or named.digest else named.tagged("latest")


def _text(fields: dict[str, Any], member: str) -> str:
    value = fields.get(member) or ""
    if not isinstance(value, str):
        raise BadRequest(f"{member} must be a text")
    return value


def _limits(fields: dict[str, Any]) -> Limits:
    from layerfs.archive.limits import Limits

    given = {}
    for member, name in (("MaxSize", "size"), ("MaxFiles", "files")):
        value = fields.get(member)
        if value is not None:
            if not isinstance(value, int) or value < 1:
                raise BadRequest(f"{member} must be a number above 0")
            given[name] = value
    return Limits(**given)


ROUTES = (
    route("POST", "/layerfs/pull", pull),
    route("POST", "/layerfs/push", push),
)
