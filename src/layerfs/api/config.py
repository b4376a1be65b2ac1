"""What a client wants of a commit or a checkpoint: the image's reference, texts and configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from layerfs.errors import BadRequest
from layerfs.mounting.mount import Checkpoint, Commit
from layerfs.store.model import to_datetime
from layerfs.unixhttp.message import Query, Request


def commit_request(request: Request) -> Commit:
    """Return what *request* asks for; raise `BadRequest` when it makes no sense.

    Changes come as repeated parameters, as one with a line each (docker-py), or as a container
    configuration in the body; the body's are applied first.
    """
    lines = [line.strip() for text in request.query.all("changes") for line in text.splitlines()]
    return Commit(
        reference=joined_reference(request.query),
        comment=request.query.get("comment"),
        author=request.query.get("author"),
        changes=(*_instructions(request.json()), *(line for line in lines if line)),
        pause=request.query.flag("pause") if request.query.get("pause") else None,
    )


def checkpoint_request(request: Request) -> Checkpoint:
    """Return what *request* asks for; raise `BadRequest` when it makes no sense.

    Its JSON members are those of `Checkpoint`; `Created` is in nanoseconds since the epoch.
    """
    body = request.json()
    words = {name: body.get(name) or "" for name in ("CreatedBy", "Comment", "Author", "Build")}
    if wrong := next((name for name, word in words.items() if not isinstance(word, str)), None):
        raise BadRequest(f"{wrong} must be a string")
    created, pause = body.get("Created"), body.get("Pause")
    if not isinstance(created, int | None) or isinstance(created, bool):
        raise BadRequest("Created must be a number of nanoseconds since the epoch")
    if not isinstance(pause, bool | None):
        raise BadRequest("Pause must be true, false or null")
    return Checkpoint(
        created_by=words["CreatedBy"],
        comment=words["Comment"],
        author=words["Author"],
        created=_moment(created) if created is not None else None,
        build=words["Build"] or None,
        pause=pause,
    )


def _moment(nanoseconds: int) -> datetime:
    try:
        return to_datetime(nanoseconds)
    except OverflowError:
        raise BadRequest("Created is a time that no calendar has") from None


def joined_reference(query: Query) -> str | None:
    """Return the reference that the parameters "repo" and "tag" make, None without a "repo"."""
    repository, tag = query.get("repo"), query.get("tag")
    if tag and not repository:
        raise BadRequest("invalid reference format: a tag needs a repository")
    return f"{repository}:{tag}" if tag else repository or None


def _instructions(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the Dockerfile instructions that set what *config*, a container's configuration, sets.

    Members that say nothing about an image (Hostname, Tty, ...) are passed over, as dockerd does.
    """
    for name, word in (("Cmd", "CMD"), ("Entrypoint", "ENTRYPOINT")):
        if config.get(name):
            yield f"{word} {json.dumps(_texts(config, name))}"
    for name, word in (("User", "USER"), ("WorkingDir", "WORKDIR")):
        if value := config.get(name):
            if not isinstance(value, str) or not value.isprintable():
                raise BadRequest(f"invalid configuration: {name} must be a line of text")
            yield f"{word} {value}"
    for text in _texts(config, "Env"):
        name, equals, value = text.partition("=")
        if not equals:
            continue  # to dockerd it says that a variable is not set
        if not name.isprintable() or set(name) & set(" \"'"):
            raise BadRequest(f"invalid configuration: Env has {text[:60]!r}: give NAME=VALUE")
        yield f"ENV {name}={_quoted(value)}"
    labels = config.get("Labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise BadRequest("invalid configuration: Labels must be an object of texts")
    for name, value in labels.items():
        yield f"LABEL {_quoted(name)}={_quoted(value)}"
    for name, word in (("ExposedPorts", "EXPOSE"), ("Volumes", "VOLUME")):
        members = config.get(name) or {}
        if not isinstance(members, dict):
            raise BadRequest(f"invalid configuration: {name} must be an object")
        for member in members:
            yield f"{word} {json.dumps([member]) if word == 'VOLUME' else member}"
    for text in _texts(config, "OnBuild"):
        yield f"ONBUILD {text}"


def _texts(config: Mapping[str, Any], name: str) -> list[str]:
    """Return the member *name* as a list of texts, a single text as a list of one."""
    value = config.get(name) or []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"invalid configuration: {name} must be a list of texts")
    return texts


def _quoted(text: str) -> str:
    """Return *text* as one word of an instruction."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
