"""Credentials that a program keeps for docker's clients: `docker-credential-NAME`, as they are configured.

The command asks, not an engine: the program, and what it knows, are the user's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerfs.errors import LayerfsError, NotFound

_HUB = "https://index.docker.io/v1/"
_PATIENCE = 30.0
"""Seconds that such a program may take: it may ask a person, or a service."""
_NONE = ("credentials not found in native keychain", "credentials server URL is missing")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN = "<token>"


def configuration() -> tuple[Path, dict[str, Any]]:
    """Return the file with docker's configuration, and what is in it; nothing if it cannot be read."""
    path = Path(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    return path, found if isinstance(found, dict) else {}


def of_host(host: str) -> dict[str, str] | None:
    """Return what a program has for the registry *host*, as docker's AuthConfig; None where none has any.

    Raises `LayerfsError` where the program is missing, fails, or takes too long.
    """
    path, config = configuration()
    helpers = _helpers(config)
    servers = (_HUB, "docker.io", "index.docker.io") if host == "docker.io" else (host, f"https://{host}")
    for server in servers:
        if name := helpers.get(server):
            return _get(path, name, server)
    if name := _store(config):
        return _get(path, name, servers[0])
    return None


def of_all() -> dict[str, dict[str, str]]:
    """Return what programs have for every registry that they know, by its address. Raises as `of_host`."""
    path, config = configuration()
    wanted = dict.fromkeys(_known(path, name), name) if (name := _store(config)) else {}
    wanted |= _helpers(config)
    found = {server: _get(path, name, server) for server, name in wanted.items()}
    return {server: given for server, given in found.items() if given is not None}


def _store(config: Mapping[str, Any]) -> str:
    name = config.get("credsStore")
    return name if isinstance(name, str) else ""


def _helpers(config: Mapping[str, Any]) -> dict[str, str]:
    helpers = config.get("credHelpers")
    if not isinstance(helpers, dict):
        return {}
    return {server: name for server, name in helpers.items() if isinstance(name, str) and name}


def _known(path: Path, name: str) -> list[str]:
    said = _ask(path, name, "list", "")
    return list(_parsed(name, said)) if said is not None else []


def _get(path: Path, name: str, server: str) -> dict[str, str] | None:
    said = _ask(path, name, "get", server)
    if said is None:
        return None
    found = _parsed(name, said)
    user, secret = found.get("Username"), found.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str) or not secret:
        return None
    if user == _TOKEN:
        return {"identitytoken": secret, "serveraddress": server}
    return {"username": user, "password": secret, "serveraddress": server}


def _parsed(name: str, said: str) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise LayerfsError(
            f"docker-credential-{name} did not answer with a JSON object: see what is wrong with it"
        )
    return found


def _ask(path: Path, name: str, action: str, server: str) -> str | None:
    """Return what the program says, None where it has no such credentials."""
    program = f"docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise NotFound(
            f"{path} names the credential program {name[:80]!r}: give what follows docker-credential-"
        )
    try:
        done = subprocess.run(
            [program, action],
            input=server,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise NotFound(
            f"{path} names {program}, which is not installed: install it, or take it out of there"
        ) from None
    except OSError as error:
        raise LayerfsError(f"cannot run {program}, which {path} names: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise LayerfsError(
            f"{program} did not answer within {_PATIENCE:g} seconds: see what it waits for"
        ) from None
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).partition("\n")[0]
        if said in _NONE:
            return None
        raise LayerfsError(f"{program} failed: {said[:200] or 'without a word'}")
    return done.stdout
