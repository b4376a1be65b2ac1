"""Routes about the daemon and its machine: `_ping`, `version`, `info`."""

from __future__ import annotations

import os
import platform
from typing import Any

from layerfs import __version__
from layerfs.api.routes import Call, route
from layerfs.api.shapes import go_architecture
from layerfs.api.state import state_of
from layerfs.unixhttp.message import API_VERSION, MIN_API_VERSION, Response, json_response


def ping(call: Call) -> Response:
    """Say that the daemon is there; clients read the API version from the headers."""
    headers = (
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-cache, no-store, must-revalidate"),
        ("Pragma", "no-cache"),
        ("Swarm", "inactive"),
    )
    return Response(200, b"OK" if call.request.method == "GET" else b"", headers)


def version(call: Call) -> Response:
    """Return the versions of layerfs, of the API and of the kernel."""
    newest, oldest = "{}.{}".format(*API_VERSION), "{}.{}".format(*MIN_API_VERSION)
    kernel = platform.release()
    details = {
        "ApiVersion": newest,
        "MinAPIVersion": oldest,
        "Os": "linux",
        "Arch": go_architecture(),
        "KernelVersion": kernel,
        "PythonVersion": platform.python_version(),
    }
    answer: dict[str, Any] = {
        "Platform": {"Name": f"layerfs {__version__}"},
        "Components": [{"Name": "Engine", "Version": __version__, "Details": details}],
        "Version": __version__,
        "ApiVersion": newest,
        "MinAPIVersion": oldest,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": go_architecture(),
        "KernelVersion": kernel,
    }
    return json_response(answer)


def info(call: Call) -> Response:
    """Return what is in the store, and what the machine is."""
    states = [state_of(mount).pid is not None for mount in call.store.mounts()]
    images = call.store.images()
    answer: dict[str, Any] = {
        "ID": str(call.root),
        "Name": platform.node(),
        "ServerVersion": __version__,
        "Containers": len(states),
        "ContainersRunning": sum(states),
        "ContainersPaused": 0,
        "ContainersStopped": len(states) - sum(states),
        "Images": len(images),
        "Driver": "layerfs",
        "DriverStatus": [["Store", str(call.root)], ["Tags", str(sum(len(image.tags) for image in images))]],
        "DockerRootDir": str(call.root),
        "OSType": "linux",
        "OperatingSystem": _operating_system(),
        "OSVersion": "",
        "Architecture": platform.machine(),
        "KernelVersion": platform.release(),
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "Plugins": {"Volume": None, "Network": None, "Authorization": None, "Log": None},
        "Swarm": {"LocalNodeState": "inactive", "NodeID": "", "ControlAvailable": False},
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": [], "Mirrors": []},
        "Runtimes": {},
        "DefaultRuntime": "",
        "SecurityOptions": [],
        "Labels": [],
        "ExperimentalBuild": False,
        "LiveRestoreEnabled": False,
        "Warnings": None,
    }
    return json_response(answer)


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "Linux"


ROUTES = (
    route("GET", "/_ping", ping),
    route("HEAD", "/_ping", ping),
    route("GET", "/version", version),
    route("GET", "/info", info),
)
