"""Routes of what Docker has and layerfs has not: they answer as an engine that has none of it."""

from __future__ import annotations

from layerfs.api.routes import Call, route
from layerfs.errors import LayerfsError, NotImplementedHere
from layerfs.unixhttp.message import Response, json_response


class NoSwarm(LayerfsError):
    """What only a manager of a swarm can do (HTTP 503)."""

    http_status = 503


def not_a_manager(call: Call) -> Response:
    """Refuse, as dockerd does on a machine that is in no swarm."""
    raise NoSwarm(
        "This node is not a swarm manager. layerfs has no swarm: use 'docker run', or docker-compose"
    )


def no_swarm(call: Call) -> Response:
    """Refuse to make or to join a swarm."""
    raise NotImplementedHere("layerfs has no swarm: use 'docker run', or docker-compose")


def not_in_a_swarm(call: Call) -> Response:
    """Refuse to leave a swarm, as dockerd does: docker-py takes this status for "it is in none"."""
    raise NoSwarm("This node is not part of a swarm")


def no_plugins(call: Call) -> Response:
    """Return the plugins: none."""
    return json_response([])


def no_plugin(call: Call) -> Response:
    """Refuse to do anything with a plugin."""
    raise NotImplementedHere("layerfs has no plugins: its networks and volumes are its own")


def no_builder(call: Call) -> Response:
    """Refuse a session of BuildKit."""
    raise NotImplementedHere("layerfs has no BuildKit: set DOCKER_BUILDKIT=0")


_MANAGED = ("services", "tasks", "nodes", "secrets", "configs")
ROUTES = (
    route("GET", "/swarm", not_a_manager),
    route("GET", "/swarm/unlockkey", not_a_manager),
    route("POST", "/swarm/leave", not_in_a_swarm),
    route("POST", "/swarm/{action}", no_swarm),
    *(
        route(method, f"/{kind}{rest}", not_a_manager)
        for kind in _MANAGED
        for method in ("GET", "POST", "DELETE")
        for rest in ("", "/{name}")
    ),
    route("GET", "/plugins", no_plugins),
    *(route(method, "/plugins/{name}", no_plugin) for method in ("GET", "POST", "DELETE")),
    route("POST", "/session", no_builder),
    route("POST", "/grpc", no_builder),
)
