"""What `POST /build` asks for, in its query and its headers, as docker's clients send it."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from layerfs.api.create import default_network
from layerfs.build.building import Options
from layerfs.container import hostconfig
from layerfs.container.members import Members
from layerfs.errors import BadRequest
from layerfs.oci import platforms
from layerfs.unixhttp.message import Query

if TYPE_CHECKING:
    from layerfs.distribution.credentials import Credentials

_HUB = "https://index.docker.io/v1/"
_MOST = 256 << 10
"""Characters of a header with credentials for several registries."""
_NUMBERS = {
    "memory": "Memory", "memswap": "MemorySwap", "cpushares": "CpuShares", "cpuperiod": "CpuPeriod",
    "cpuquota": "CpuQuota", "shmsize": "ShmSize",
}  # fmt: skip
_TEXTS = {"cpusetcpus": "CpusetCpus", "cpusetmems": "CpusetMems", "cgroupparent": "CgroupParent"}
EPOCH = "SOURCE_DATE_EPOCH"


def options(query: Query, ours: Mapping[str, Any] | None) -> Options:
    """Return what *query* asks for, and the body of our own client if it is one. Raises `BadRequest`."""
    more = ours or {}
    _refuse(query)
    args = {name: value for name, value in _pairs(query, "buildargs").items() if value is not None}
    return Options(
        host=_host(query),
        platform=platforms.parse(query.get("platform") or None),
        tags=tuple(tag for tag in query.all("t") if tag),
        target=query.get("target"),
        args=args,
        labels={name: value or "" for name, value in _pairs(query, "labels").items()},
        no_cache=query.flag("nocache"),
        pull=query.flag("pull"),
        cache_from=tuple(_list(query, "cachefrom")),
        only_cache_from=ours is None,
        secrets={name: _decoded(value) for name, value in (more.get("secrets") or {}).items()},
        ssh=dict(more.get("ssh") or {}),
        epoch=_epoch(args.get(EPOCH)),
        host_network=_allowed(more.get("allow") or ()),
        keep_failed=bool(more.get("debug")),
    )


def credentials(header: str) -> Callable[[str], Credentials]:
    """Return what finds the credentials for a host in an `X-Registry-Config` header. Raises `BadRequest`."""
    from layerfs.distribution.credentials import Credentials, decoded, server

    found: dict[str, Credentials] = {}
    if header.strip():
        fields = decoded(header, "X-Registry-Config", _MOST)
        if not isinstance(fields, dict):
            raise BadRequest("invalid X-Registry-Config header: it must be an object")
        for address, config in fields.items():
            found[server(str(address))] = Credentials.of(config, "X-Registry-Config header")
    return lambda host: found.get(server(host), Credentials())


def _allowed(names: Any) -> bool:
    """Return whether *names*, what BuildKit calls entitlements, have the network of the host among them."""
    for name in names:
        if name != "network.host":
            raise BadRequest(f"--allow {str(name)[:80]}: only network.host can be allowed")
    return bool(names)


def _refuse(query: Query) -> None:
    """Refuse what would do nothing, rather than not doing it."""
    if query.get("version") == "2" or query.get("session"):
        raise BadRequest(
            "builds by BuildKit's protocol are not supported: set DOCKER_BUILDKIT=0, or use 'layerfs build'"
        )
    if query.flag("squash"):
        raise BadRequest("squash is only supported with experimental mode")
    if query.get("isolation") not in ("", "default"):
        raise BadRequest(f"Unsupported isolation: {query.get('isolation')[:80]!r}")
    if query.get("outputs") not in ("", "[]", "null"):
        raise BadRequest("outputs other than an image are not supported")


def _host(query: Query) -> dict[str, Any]:
    """Return the `HostConfig` for the commands of a build."""
    members: dict[str, Any] = {}
    for name, member in _NUMBERS.items():
        if text := query.get(name):
            members[member] = _number(name, text)
    members |= {member: query.get(name) for name, member in _TEXTS.items() if query.get(name)}
    if hosts := _hosts(query):
        members["ExtraHosts"] = hosts
    for name, member in (("ulimits", "Ulimits"), ("securityopt", "SecurityOpt")):
        if query.get(name) not in ("", "null"):
            members[member] = _json(query, name)
    members["NetworkMode"] = query.get("networkmode")
    network = "bridge" if os.geteuid() == 0 else default_network()
    return hostconfig.taken(Members(members, "HostConfig"), network)[0]


def _hosts(query: Query) -> list[str]:
    """Return `extrahosts`: a list as JSON, or, as older clients send it, one or several texts."""
    texts = query.all("extrahosts")
    if len(texts) == 1 and texts[0].startswith("["):
        return _list(query, "extrahosts")
    if len(texts) == 1 and texts[0].startswith("{"):  # docker-py sends an object
        return [f"{name}:{address}" for name, address in _pairs(query, "extrahosts").items()]
    return [host for text in texts for host in text.split(",") if host]


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadRequest(f"{name} must be a number, not {text[:40]!r}") from None


def _json(query: Query, name: str) -> Any:
    try:
        return json.loads(query.get(name))
    except (ValueError, RecursionError):
        raise BadRequest(f"{name} is no JSON: {query.get(name)[:80]!r}") from None


def _pairs(query: Query, name: str) -> dict[str, str | None]:
    """Return an object of texts; a null stands for a variable that the client has not set."""
    if query.get(name) in ("", "null"):
        return {}
    found = _json(query, name)
    if not isinstance(found, dict) or not all(it is None or isinstance(it, str) for it in found.values()):
        raise BadRequest(f"{name} must be an object of strings")
    return found


def _list(query: Query, name: str) -> list[str]:
    if query.get(name) in ("", "null"):
        return []
    found = _json(query, name)
    if not isinstance(found, list) or not all(isinstance(it, str) for it in found):
        raise BadRequest(f"{name} must be a list of strings")
    return found


def _epoch(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise BadRequest(f"{EPOCH} must be seconds since 1970, not {text[:40]!r}")
    return int(text)


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("a secret is not in base64") from None
