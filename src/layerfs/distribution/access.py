"""How a registry is reached: what a client says about it, as skopeo's options.

Docker's clients say who they are. layerfs's own say all that skopeo may be told, and send what is in the
files that are named: a command reads its own files, and a process that answers it may not be able to.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from layerfs.distribution import skopeo
from layerfs.distribution.credentials import Credentials
from layerfs.distribution.named import Named
from layerfs.distribution.skopeo import Options
from layerfs.errors import BadRequest
from layerfs.store.scratch import Scratch


class Access(Protocol):
    """What is known of how to reach a registry."""

    def options(self, named: Named, scratch: Scratch) -> AbstractContextManager[Options]:
        """Return a context manager with the options for the registry of *named*.

        What they name lasts as long as the context: files in memory, and in *scratch*.
        """


@dataclass(frozen=True, slots=True)
class OfHeader:
    """The access of Docker's clients."""

    credentials: Credentials

    @contextmanager
    def options(self, named: Named, scratch: Scratch) -> Iterator[Options]:
        """See `Access`."""
        with self.credentials.file(named.host) as authfile:
            yield skopeo.access(named.is_local, authfile)


@dataclass(frozen=True, slots=True)
class OfCommand:
    """The access of layerfs's own commands."""

    tls_verify: bool | None = None
    auth: str | None = None
    """The contents of an authfile; None leaves it to skopeo to find one."""
    creds: tuple[str, str] | None = None
    certificates: Mapping[str, bytes] | None = None
    """The files of a directory of certificates and keys."""
    policy: str | None = None
    extra: Sequence[str] = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any], *, own: bool) -> OfCommand:
        """Return what *fields* of a request say. Raises `BadRequest`.

        Unless this process is the client's *own*, the authfiles that skopeo would find are another user's.
        """
        verify, extra, files = fields.get("TlsVerify"), fields.get("Skopeo") or [], fields.get("Certificates")
        if not isinstance(verify, bool | None) or not isinstance(files, dict | None):
            raise BadRequest("TlsVerify must be true or false, and Certificates an object")
        if not isinstance(extra, list) or not all(isinstance(word, str) for word in extra):
            raise BadRequest("Skopeo must be a list of texts")
        auth = _text(fields, "Auth")
        if auth is None and not own:
            auth = _text(fields, "DefaultAuth") or '{"auths": {}}'
        user, colon, password = (_text(fields, "Creds") or "").partition(":")
        try:
            found = {name: base64.b64decode(data, validate=True) for name, data in (files or {}).items()}
        except (binascii.Error, ValueError, TypeError):
            raise BadRequest("Certificates must be files in base64") from None
        if any("/" in name or name in ("", ".", "..") for name in found):
            raise BadRequest("Certificates must have names of files")
        creds = (user, password if colon else "") if user else None
        return cls(verify, auth, creds, found or None, _text(fields, "Policy"), tuple(extra))

    @contextmanager
    def options(self, named: Named, scratch: Scratch) -> Iterator[Options]:
        """See `Access`."""
        with ExitStack() as stack:
            auth, files = self.auth, {}
            if self.creds is not None:
                both = base64.b64encode(":".join(self.creds).encode()).decode()
                auth = json.dumps({"auths": {named.host: {"auth": both}}})
            for name, text in (("authfile", auth), ("policy", self.policy)):
                if text is not None:
                    files[name] = stack.enter_context(_in_memory(name, text.encode()))
            paths = {name: f"/proc/self/fd/{fd}" for name, fd in files.items()}
            certificates = None
            if self.certificates is not None:
                certificates = scratch.path / "certificates"
                certificates.mkdir(mode=0o700, exist_ok=True)
                for name, data in self.certificates.items():
                    (certificates / name).write_bytes(data)
            yield Options(
                tls_verify=self.tls_verify,
                authfile=paths.get("authfile"),
                policy=paths.get("policy"),
                cert_dir=str(certificates) if certificates else None,
                extra=self.extra,
                descriptors=tuple(files.values()),
            )


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if not isinstance(value, str | None):
        raise BadRequest(f"{name} must be a text")
    return value or None


@contextmanager
def _in_memory(name: str, data: bytes) -> Iterator[int]:
    """Yield the descriptor of a file that has no name and is on no disk: it may hold secrets."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        yield fd
    finally:
        os.close(fd)
