"""The credentials that a client sends along, and how skopeo gets them: never by a command line or a disk."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from layerfs.errors import BadRequest

_HUB = ("", "docker.io", "index.docker.io", "registry-1.docker.io")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?|\[[0-9A-Fa-f:]+\](?::\d{1,5})?")
_MOST = 64 << 10
"""Bytes of a header with credentials: tokens of some registries have several thousand."""


def decoded(text: str, header: str, most: int) -> object:
    """Return the JSON in the base64, of either alphabet, that *text*, of a *header*, is made of.

    Raises `BadRequest`, for more than *most* characters too.
    """
    if len(text) > most:
        raise BadRequest(f"invalid {header} header: it has more than {most >> 10} KiB")
    try:
        plain = text.strip().replace("-", "+").replace("_", "/").rstrip("=")
        return json.loads(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise BadRequest(f"invalid {header} header: it is not JSON in base64") from None


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who a client says that it is. Its texts are not shown by `repr`."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    server: str = ""
    """The registry's host, `docker.io` where none was named."""

    @property
    def are_given(self) -> bool:
        """Whether there are any at all."""
        return bool(self.username or self.identity_token)

    @classmethod
    def of_header(cls, text: str) -> Credentials:
        """Return those in an `X-Registry-Auth` header: JSON in base64, of either alphabet.

        An empty header, and one with an empty object, mean none. Raises `BadRequest` for what makes no sense:
        dockerd would go on without, and the client would be told of a repository that does not exist.
        """
        if not text.strip():
            return cls()
        return cls.of(decoded(text, "X-Registry-Auth", _MOST), "X-Registry-Auth header")

    @classmethod
    def of(cls, fields: object, what: str) -> Credentials:
        """Return those in *fields*, Docker's AuthConfig; *what* brought them. Raises `BadRequest`."""
        if fields is None:
            return cls()
        if not isinstance(fields, Mapping):
            raise BadRequest(f"invalid {what}: it must be an object")
        texts = {name.lower(): _text(fields, name, what) for name in fields if isinstance(name, str)}
        username, password = texts.get("username", ""), texts.get("password", "")
        if not username and (both := texts.get("auth")):
            try:
                username, colon, password = base64.b64decode(both, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                colon = ""
            if not colon:
                raise BadRequest(f"invalid {what}: auth must be USERNAME:PASSWORD in base64")
        if texts.get("registrytoken") and not username:
            raise BadRequest(f"invalid {what}: a registry token is not taken: give a user and a password")
        if ":" in username or "\0" in username + password:
            raise BadRequest(f"invalid {what}: a username has no colon in it, and nothing a zero byte")
        return cls(username, password, texts.get("identitytoken", ""), server(texts.get("serveraddress", "")))

    @contextmanager
    def file(self, host: str) -> Iterator[int]:
        """Yield the descriptor of a file for skopeo's `--authfile`, with these for *host* and no others.

        It is in memory alone and has no name, so nothing is left of it whoever is killed. Without
        credentials the file names none: those of the user whom the engine runs as are not for its clients.
        """
        auths: dict[str, Any] = {}
        if self.are_given:
            name = self.username or "<token>"
            auths[host] = {"auth": base64.b64encode(f"{name}:{self.password}".encode()).decode()}
            if self.identity_token:
                auths[host]["identitytoken"] = self.identity_token
        fd = os.memfd_create("authfile", os.MFD_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, json.dumps({"auths": auths}).encode())
            yield fd
        finally:
            os.close(fd)


def _text(fields: Mapping[str, Any], name: str, what: str) -> str:
    value = fields[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"invalid {what}: {name[:40]} must be a text")
    return value.encode(errors="replace").decode()  # JSON may have half a character, a lone surrogate


def server(address: str) -> str:
    """Return the host of a registry's *address*, a URL or a host. Raises `BadRequest`."""
    host = re.sub(r"^https?://", "", address.strip()).partition("/")[0]
    if host in _HUB:
        return "docker.io"
    if not _HOST.fullmatch(host):
        raise BadRequest(f"invalid server address {address[:100]!r}: give HOST or HOST:PORT")
    return host
