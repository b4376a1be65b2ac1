"""What a FROM begins with, and what `COPY --from` and `RUN --mount=from` take that is no stage: images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerfs.errors import BadRequest, LayerfsError, NotFound
from layerfs.store.references import normalize

if TYPE_CHECKING:
    from layerfs.build.progress import Progress, Step
    from layerfs.distribution.credentials import Credentials
    from layerfs.oci.platforms import Platform
    from layerfs.store import Store
    from layerfs.store.model import Image

SCRATCH = "scratch"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Base:
    """What a stage begins with."""

    step: str | None
    """The step on top of its layers; None for `scratch`."""
    config: Mapping[str, Any]
    """The `config` object of its OCI configuration."""
    platform: Platform
    identifier: str = ""
    """The id of the image, where it is one."""


@dataclass(slots=True)
class _Resolution:
    lock: threading.Lock = field(default_factory=threading.Lock)
    found: Image | None = None


class Images:
    """The images that a build uses, each looked up once. For all its threads."""

    def __init__(self, *, pull: bool, credentials: Callable[[str], Credentials]) -> None:
        """With *pull*, ask the registry for each of them; *credentials* returns those for a host."""
        self._pull = pull
        self._credentials = credentials
        self._lock = threading.Lock()
        self._known: dict[tuple[str, Platform], _Resolution] = {}

    def base(
        self, store: Store, reference: str, platform: Platform, progress: Progress, check: Callable[[], None]
    ) -> Base:
        """Return the image *reference* for *platform*, which is pulled if need be, or nothing for `scratch`.

        It is held for the build of *store*. Raises `LayerfsError`.
        """
        if reference == SCRATCH:
            return Base(None, {"Env": [_PATH], "WorkingDir": "/"}, platform)
        image = self._image(store, reference, platform, progress, check)
        from layerfs.oci.platforms import Platform

        own = Platform(image.os, image.architecture)
        return Base(store.steps.step_of(image), image.config, own, image.id)

    def _image(
        self, store: Store, reference: str, platform: Platform, progress: Progress, check: Callable[[], None]
    ) -> Image:
        with self._lock:
            resolution = self._known.setdefault((reference, platform), _Resolution())
        with resolution.lock:
            if resolution.found is None:
                resolution.found = self._look(store, reference, platform, progress, check)
            return resolution.found

    def _look(
        self, store: Store, reference: str, platform: Platform, progress: Progress, check: Callable[[], None]
    ) -> Image:
        here = None
        if "@" not in reference:
            try:
                here = store.resolve(reference)
            except NotFound:
                here = None
            if here is not None and (here.os, here.architecture) != platform[:2]:
                here = None  # another platform's: the registry may have the one that is wanted
            if here is not None and (not self._pull or _is_id(here, reference)):
                return here
        return self._fetch(store, reference, platform, progress, check)

    def _fetch(
        self, store: Store, reference: str, platform: Platform, progress: Progress, check: Callable[[], None]
    ) -> Image:
        from layerfs.archive.limits import Limits
        from layerfs.distribution.access import OfHeader
        from layerfs.distribution.named import Named
        from layerfs.distribution.pull import pull
        from layerfs.distribution.refusals import of_pull

        named = Named.parse(reference)
        if named.tag is None and named.digest is None:
            named = named.tagged("latest")
        credentials = self._credentials(named.host)
        try:
            (pulled,) = pull(
                store,
                named,
                OfHeader(credentials),
                platform=str(platform),
                limits=Limits(),
                report=_Pulling(progress.look(f"pull {named}"), check),
                doing=f"pull {named}",
            )
        except LayerfsError as error:
            raise of_pull(error, named, anonymous=not credentials.are_given) from None
        try:
            image = store.resolve(f"sha256:{pulled.id}")
        except NotFound:
            raise NotFound(f"{named} was removed while the build went on: build again") from None
        if (image.os, image.architecture) != platform[:2]:
            raise BadRequest(
                f"image {reference} is for {image.os}/{image.architecture}, not for {platform}: "
                "give another --platform"
            )
        return image


def _is_id(image: Image, reference: str) -> bool:
    """Return whether *reference* names *image* by its id: then no registry has another one."""
    try:
        return normalize(reference) not in image.tags
    except BadRequest:
        return True


class _Pulling:
    """What a pull says, as a word of a step."""

    def __init__(self, step: Step, check: Callable[[], None]) -> None:
        self._step = step
        self.check = check

    def say(self, status: str, id: str = "", *, current: int = -1, total: int = 0) -> None:
        """See `distribution.progress.Report`."""
        fields: dict[str, Any] = {"status": status}
        if current >= 0:
            fields["progressDetail"] = {"current": current, "total": total} if total else {}
        if id:
            fields["id"] = id
        self._step.pulling(fields)
