"""Login: credentials are tried on a registry, and kept by whoever has asked."""

from __future__ import annotations

import re

from layerfs.distribution import skopeo
from layerfs.distribution.credentials import Credentials
from layerfs.distribution.named import is_loopback
from layerfs.errors import LayerfsError, Unauthorized
from layerfs.store.scratch import Scratch

_PING = re.compile(r'msg="Ping (\S+/v2/) (?:status (\d+)|err ((?:[^"\\]|\\.)*?) \(&)')


def log_in(credentials: Credentials, scratch: Scratch) -> None:
    """Return if the registry takes *credentials*.

    Raises `Unauthorized` if it does not, and `LayerfsError` where it cannot be reached.
    """
    host = credentials.server
    skopeo.check(f"log in to {host}")
    with credentials.file(host) as authfile:
        options = skopeo.access(is_loopback(host), authfile)
        logged = skopeo.log_in(host, options, scratch=scratch)
    if logged is None:
        return
    # skopeo tries TLS first and, only where that may be left out, does without.
    reason = f"{host} did not answer"
    for url, status, error in _PING.findall(logged):
        if status:
            raise Unauthorized(f"login attempt to {url} failed with status: 401 Unauthorized")
        reason = skopeo.unquoted(f'"{error}"')
    raise LayerfsError(reason)
