"""Routes about registries: pull and push, import, login, and what a registry has under a name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from layerfs.api.config import joined_reference
from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest, LayerfsError, NotFound, NotImplementedHere
from layerfs.unixhttp.message import Answer, Response, Stream, json_response

if TYPE_CHECKING:
    from layerfs.api.progress import Lines
    from layerfs.distribution.credentials import Credentials
    from layerfs.distribution.named import Named

_AUTH = "x-registry-auth"


def create_image(call: Call) -> Answer:
    """Pull an image (`fromImage`), or make one of the archive that comes with the call (`fromSrc`)."""
    if call.query.get("fromImage"):
        return pull_image(call)
    return import_image(call)


def pull_image(call: Call) -> Answer:
    """Bring an image from a registry; with no tag and no digest, every one of its repository."""
    from layerfs.api.progress import JSON_LINES, Lines
    from layerfs.archive.limits import Limits
    from layerfs.distribution.access import OfHeader
    from layerfs.distribution.named import Named
    from layerfs.distribution.pull import pull
    from layerfs.distribution.refusals import of_pull
    from layerfs.oci import platforms

    named = Named.parse(call.query.get("fromImage"), call.query.get("tag"))
    credentials = _credentials(call)
    platform = call.query.get("platform") or None
    platforms.parse(platform)

    def work(lines: Lines) -> None:
        from layerfs.store import Store

        words = partial(of_pull, named=named, anonymous=not credentials.are_given)
        with Store(call.root) as store, _Worded(words):
            pull(
                store,
                named,
                OfHeader(credentials),
                platform=platform,
                limits=Limits(),
                report=lines,
                doing=f"pull {named}",
            )

    return Stream(200, Lines.of(work), JSON_LINES)


def push_image(call: Call) -> Answer:
    """Bring an image to the registry that its name says; with no tag, every tag of its repository."""
    from layerfs.api.progress import JSON_LINES, Lines
    from layerfs.distribution.access import OfHeader
    from layerfs.distribution.named import Named
    from layerfs.distribution.push import push_named
    from layerfs.distribution.refusals import of_push

    named = Named.parse(call.names["name"], call.query.get("tag"))
    if named.digest is not None:
        raise BadRequest("cannot push a digest reference")
    credentials = _credentials(call)
    _check_platform(call, named)

    def work(lines: Lines) -> None:
        from layerfs.store import Store

        with Store(call.root) as store, _Worded(partial(of_push, named=named)):
            for done in push_named(store, named, OfHeader(credentials), lines):
                lines.say(f"{done.tag}: digest: {done.digest} size: {done.size}")
                lines.put(
                    {
                        "progressDetail": {},
                        "aux": {"Tag": done.tag, "Digest": done.digest, "Size": done.size},
                    }
                )

    return Stream(200, Lines.of(work), JSON_LINES)


class _Worded:
    """A context manager that raises errors in the *words* of dockerd."""

    def __init__(self, words: Callable[[LayerfsError], LayerfsError]) -> None:
        self._words = words

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LayerfsError) and (worded := self._words(error)) is not error:
            raise worded from None


def _credentials(call: Call) -> Credentials:
    from layerfs.distribution.credentials import Credentials

    return Credentials.of_header(call.request.headers.get(_AUTH, ""))


def _check_platform(call: Call, named: Named) -> None:
    """Raise where the call wants to push an image for another platform than the one that it is for."""
    text = call.query.get("platform")
    if not text or call.request.version < (1, 46):
        return
    try:
        fields = json.loads(text)
        system, architecture = fields["os"], fields["architecture"]
    except (ValueError, TypeError, KeyError):
        raise BadRequest(f"failed to parse platform: {text[:200]}") from None
    image = call.store.resolve(str(named))
    if (system, architecture) != (image.os, image.architecture):
        raise NotFound(
            f"image {named} is for {image.os}/{image.architecture}, "
            f"and not for {str(system)[:50]}/{str(architecture)[:50]}"
        )


def import_image(call: Call) -> Answer:
    """Make an image of the archive of a tree that comes with the call.

    `called` is what it comes from, for the history. With `progress` it is told how far it is.
    """
    from layerfs.api.progress import JSON_LINES, Lines
    from layerfs.oci import platforms

    given = call.query.get("fromSrc")
    if not given:
        raise BadRequest("give fromImage, an image to pull, or fromSrc=- with an archive to import")
    if given != "-":
        raise NotImplementedHere(
            "importing from a URL is not supported: fetch it yourself, as in 'curl URL | docker import -'"
        )
    archive: Path | BinaryIO | None = call.request.source or cast("BinaryIO | None", call.request.upload)
    if archive is None:
        raise BadRequest("no archive came with the request")
    reference = joined_reference(call.query)
    if platform := call.query.get("platform"):
        wanted, own = platforms.parse(platform), platforms.parse(None)
        if wanted[:2] != own[:2]:
            raise BadRequest(f"an archive is imported for {own}, not for {wanted}")
    if not call.place.alone:
        from layerfs.api import apart

        return apart.answer(call)
    texts = [line.strip() for text in call.query.all("changes") for line in text.splitlines()]
    called = call.query.get("called")
    early = call.request.source is not None
    shown = "Importing" if call.query.flag("progress") and early else None

    def work(lines: Lines) -> None:
        from layerfs.store import Store

        report = lines.bytes_done(shown)
        with Store(call.root) as store:
            notes = store.recover() if called else []
            if early:
                lines.notes(notes)
            image = store.import_image(
                archive,
                reference,
                message=call.query.get("message") or ("" if called else "Imported from -"),
                changes=[line for line in texts if line],
                called=called or "-",
                progress=lambda done: report(done, 0),
            )
        if not early:  # before the upload is read, nothing may be said: its end is not read after that
            lines.notes(notes)
        lines.put({"status": f"sha256:{image.id}"})

    return Stream(200, Lines.of(work), JSON_LINES)


def log_in(call: Call) -> Response:
    """Try credentials on a registry: `docker login` keeps them where they are good."""
    from layerfs.distribution.credentials import Credentials
    from layerfs.distribution.login import log_in

    credentials = Credentials.of(call.request.json(), "request body")
    if not credentials.are_given:
        raise BadRequest("no username is given: give a username and a password")
    with call.store.scratch() as scratch:
        log_in(credentials, scratch)
    return json_response({"Status": "Login Succeeded", "IdentityToken": ""})


def inspect_remote(call: Call) -> Response:
    """Return the digest and the platforms of what a registry has under a name."""
    from layerfs.distribution import skopeo
    from layerfs.distribution.lookup import Registry
    from layerfs.distribution.named import Named
    from layerfs.distribution.refusals import of_pull

    named = Named.parse(call.names["name"])
    if named.tag is None and named.digest is None:
        named = named.tagged("latest")
    doing = f"inspect {named}"
    skopeo.check(doing)
    credentials = _credentials(call)
    words = partial(of_pull, named=named, anonymous=not credentials.are_given)
    with credentials.file(named.host) as authfile, call.store.scratch() as scratch, _Worded(words):
        options = skopeo.access(named.is_local, authfile)
        descriptor, platforms = Registry(named, options, scratch, doing, lambda: None).describe()
    answer: dict[str, Any] = {
        "Descriptor": {
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        },
        "Platforms": platforms,
    }
    return json_response(answer)


def search(call: Call) -> Response:
    """Refuse: registries other than Docker's own have no search."""
    raise NotImplementedHere(
        "searching is not supported: look for images on the registry's own pages, such as hub.docker.com"
    )


ROUTES = (
    route("POST", "/images/create", create_image, upload=True),
    route("GET", "/images/search", search),
    route("POST", "/images/{name}/push", push_image),
    route("POST", "/auth", log_in),
    route("GET", "/distribution/{name}/json", inspect_remote),
)
