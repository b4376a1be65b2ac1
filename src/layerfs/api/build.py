"""`POST /build`: a build as docker's classic clients ask for it, and as our own client does.

Our client sends JSON in place of an archive: it is on the same machine, so the context is a path. It is told
events in place of the classic builder's words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest, LayerfsError
from layerfs.unixhttp.message import Stream

if TYPE_CHECKING:
    from layerfs.api.progress import Lines
    from layerfs.build.building import Options
    from layerfs.build.context import Context
    from layerfs.build.progress import Progress
    from layerfs.distribution.credentials import Credentials
    from layerfs.store.model import Image

_MOST = 8 << 20
"""Bytes of what our client sends: a Dockerfile, and secrets."""
_TEXTS = ("archive", "directory", "dockerfile", "dockerfile_path", "dockerfile_text", "url")


def build(call: Call) -> Stream:
    """Build an image, and tell of it while it is done. The client's going ends the build."""
    from layerfs.api.buildoptions import credentials, options
    from layerfs.api.progress import JSON_LINES, Lines

    ours = _ours(call)
    wanted = options(call.query, ours)
    found = credentials(call.request.headers.get("x-registry-config", ""))
    with ExitStack() as failing:
        ends = failing.enter_context(ExitStack())
        given = None if ours is not None or call.query.get("remote") else _unpacked(call, ends)

        def work(lines: Lines) -> None:
            with ends:
                if ours is not None:
                    context = _own_context(call.root, ours, ends, lines.check)
                    _native(call, context, wanted, found, lines)
                else:
                    _classic(call, given or _remote(call, ends, lines.check), wanted, found, lines)

        pieces = Lines.of(work)  # which has run `work` to its end, or does so in its own time
        failing.pop_all()
    return Stream(200, pieces, JSON_LINES)


def _ours(call: Call) -> dict[str, Any] | None:
    """Return what our client has sent, None for another client."""
    if not call.request.headers.get("content-type", "").startswith("application/json"):
        return None
    body = call.request.body
    if call.request.upload is not None:
        while piece := call.request.upload.read(1 << 16):
            body += piece
            if len(body) > _MOST:
                raise BadRequest(f"the request has more than {_MOST >> 20} MiB")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BadRequest("the request's body must be a JSON object")
    for name in _TEXTS:
        text = fields.get(name)
        if text is not None and (not isinstance(text, str) or "\0" in text):
            raise BadRequest(f"{name} must be a text without zero bytes")
    for name in ("secrets", "ssh"):
        pairs = fields.get(name) or {}
        if not isinstance(pairs, dict) or not all(isinstance(text, str) for text in pairs.values()):
            raise BadRequest(f"{name} must be an object of strings")
    return fields


def _native(
    call: Call, context: Context, wanted: Options, found: Callable[[str], Credentials], lines: Lines
) -> None:
    from layerfs.build.errors import StepFailed
    from layerfs.build.progress import Events

    try:
        image = _build(call, context, wanted, Events(lines), found)
    except StepFailed as error:
        tail = error.tail.decode(errors="replace")
        lines.put({"failed": {"code": error.code, "tail": tail, "image": error.image, "where": error.where}})
        raise
    lines.put({"image": image.id, "tags": list(image.tags), "wanted": list(wanted.tags)})


def _classic(
    call: Call, context: Context, wanted: Options, found: Callable[[str], Credentials], lines: Lines
) -> None:
    from layerfs.build.errors import StepFailed
    from layerfs.build.progress import Classic, Quiet
    from layerfs.store.references import normalize

    quiet = Quiet(lines) if call.query.flag("q") else None
    try:
        image = _build(call, context, wanted, Classic(quiet or lines), found)
    except StepFailed as error:
        if quiet is not None:
            quiet.tell()
        text = str(error)
        lines.put({"errorDetail": {"code": error.code, "message": text}, "error": text})
        return
    except LayerfsError:
        if quiet is not None:
            quiet.tell()
        raise
    lines.put({"aux": {"ID": f"sha256:{image.id}"}})
    if quiet is not None:
        lines.put({"stream": f"sha256:{image.id}\n"})
        return
    lines.put({"stream": f"Successfully built {image.id[:12]}\n"})
    for tag in wanted.tags:
        lines.put({"stream": f"Successfully tagged {normalize(tag)}\n"})


def _build(
    call: Call,
    context: Context,
    wanted: Options,
    progress: Progress,
    found: Callable[[str], Credentials],
) -> Image:
    from layerfs.build.builder import build

    return build(call.root, call.place.launch, context, wanted, progress, found)


def _own_context(
    root: Path, fields: Mapping[str, Any], ends: ExitStack, check: Callable[[], None]
) -> Context:
    """Return the context that our client names: a directory, an archive, a URL, or a Dockerfile alone."""
    from layerfs.build import context as contexts

    dockerfile: str | bytes | Path | None = fields.get("dockerfile")
    if (text := fields.get("dockerfile_text")) is not None:
        dockerfile = str(text).encode("utf-8", "surrogateescape")
    elif file := fields.get("dockerfile_path"):
        dockerfile = Path(file)
    if directory := fields.get("directory"):
        return ends.enter_context(contexts.from_directory(Path(directory), dockerfile))
    if isinstance(dockerfile, Path):
        dockerfile = dockerfile.read_bytes()
    if archive := fields.get("archive"):
        with Path(archive).open("rb") as stream:
            return ends.enter_context(contexts.from_tar(stream, _scratch(root, ends), dockerfile))
    if url := fields.get("url"):
        made = contexts.from_url(url, _scratch(root, ends), dockerfile, check=check)
        return ends.enter_context(made)
    if isinstance(dockerfile, bytes):
        return ends.enter_context(contexts.from_dockerfile(dockerfile))
    raise BadRequest("no build context is given: name a directory, an archive, or a URL")


def _unpacked(call: Call, ends: ExitStack) -> Context:
    """Return the context that a docker client sends."""
    from layerfs.build import context as contexts

    if call.request.upload is None:
        raise BadRequest("no build context came with the request: send an archive, or name a remote")
    stream = cast(BinaryIO, call.request.upload)
    name = call.query.get("dockerfile") or None
    return ends.enter_context(contexts.from_tar(stream, _scratch(call.root, ends), name))


def _remote(call: Call, ends: ExitStack, check: Callable[[], None]) -> Context:
    """Return the context that a docker client has named in `remote`."""
    from layerfs.build import context as contexts

    remote = call.query.get("remote")
    if remote == "client-session":
        raise BadRequest("builds by BuildKit's protocol are not supported: set DOCKER_BUILDKIT=0")
    name = call.query.get("dockerfile") or None
    return ends.enter_context(contexts.from_url(remote, _scratch(call.root, ends), name, check=check))


def _scratch(root: Path, ends: ExitStack) -> Path:
    """Return a directory in the store that goes with *ends*."""
    from layerfs.store import Store

    with Store(root) as store:  # which is not for the thread that ends the rest
        return ends.enter_context(store.scratch()).path


ROUTES = (route("POST", "/build", build, upload=True, waits=True),)
