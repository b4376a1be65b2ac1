"""Names of images: the grammar of Docker's references (distribution/reference), in familiar form."""

from __future__ import annotations

import re

from layerfs.errors import BadRequest

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_LONGEST = 1024
_ID = re.compile(r"[0-9a-f]{64}")
_ID_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


def normalize(reference: str) -> str:
    """Return *reference* as `repository:tag`, the tag `latest` where none is given.

    `docker.io/library/debian` and `debian` are the same. Raises `BadRequest` for anything else.
    """
    if not reference:
        raise BadRequest("invalid reference format: '' is empty: give a name such as debian:12")
    if len(reference) > _LONGEST:
        raise _invalid(reference, f"it has more than {_LONGEST} characters")
    rest, slash, last = reference.rpartition("/")
    last, colon, tag = last.partition(":")
    if "@" in last + tag:
        raise _invalid(reference, "a name with a digest cannot be given to an image")
    name = rest + slash + last
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(reference, f"bad tag {tag!r}")
    host, path = _split_host(name)
    if path != path.lower():
        raise _invalid(reference, "the repository name must be lower case")
    if not _PATH.fullmatch(path) or (host and not _HOST.fullmatch(host)) or len(name) > 255:
        raise _invalid(
            reference, "use [host[:port]/]name[:tag] with a-z, 0-9 and single '.', '_', '-' inside"
        )
    if not host and _ID.fullmatch(path):
        raise _invalid(reference, "64 hexadecimal digits are an identifier")
    if host in ("docker.io", "index.docker.io"):
        host, path = "", path.removeprefix("library/")
    return f"{host}/{path}:{tag or 'latest'}" if host else f"{path}:{tag or 'latest'}"


def id_prefix(reference: str) -> str | None:
    """Return the digits of *reference* where it can be (the beginning of) an identifier."""
    match = _ID_PREFIX.fullmatch(reference)
    return match[1] if match else None


def repository(tag: str) -> str:
    """Return the repository of a normalized reference."""
    return tag.rpartition(":")[0]


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return first, rest
    return "", name


def _invalid(reference: str, why: str) -> BadRequest:
    return BadRequest(f"invalid reference format: {reference[:100]!r}: {why}")
