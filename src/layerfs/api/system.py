"""Routes about the daemon and its machine: `_ping`, `version`, `info`."""

from __future__ import annotations

import os
import platform
from collections import Counter
from typing import Any

from layerfs import __version__
from layerfs.api.routes import Call, route
from layerfs.api.shapes import go_architecture
from layerfs.api.state import state_of
from layerfs.container import ociruntime, seccomp
from layerfs.errors import LayerfsError
from layerfs.host import cgroups
from layerfs.unixhttp.message import API_VERSION, MIN_API_VERSION, Response, json_response


def ping(call: Call) -> Response:
    """Say that the daemon is there; clients read the API version from the headers."""
    headers = (
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-cache, no-store, must-revalidate"),
        ("Pragma", "no-cache"),
        ("Swarm", "inactive"),
        ("Builder-Version", "1"),
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
    states = Counter(state_of(row).state for row in call.store.mounts())
    images = call.store.images()
    running, paused = states["running"] + states["restarting"], states["paused"]
    answer: dict[str, Any] = {
        "ID": str(call.root),
        "Name": platform.node(),
        "Debug": False,
        "ServerVersion": __version__,
        "Containers": states.total(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": states.total() - running - paused,
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
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Authorization": None,
            "Log": ["json-file", "local", "none"],
        },
        "Swarm": {"LocalNodeState": "inactive", "NodeID": "", "ControlAvailable": False},
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": [], "Mirrors": []},
        **_runtimes(),
        **_limits(),
        "LoggingDriver": "json-file",
        "SecurityOptions": [] if seccomp.is_missing() else ["name=seccomp,profile=builtin"],
        "Labels": [],
        "ExperimentalBuild": False,
        "LiveRestoreEnabled": True,
        "InitBinary": "docker-init",
        "Warnings": [seccomp.UNFILTERED.replace("warning", "WARNING", 1)] if seccomp.is_missing() else None,
    }
    return json_response(answer)


def _runtimes() -> dict[str, Any]:
    try:
        found = [one.path for one in ociruntime.installed()]
    except LayerfsError:
        found = []
    names = [os.path.basename(path) for path in found]
    return {
        "Runtimes": {name: {"path": path} for name, path in zip(names, found, strict=True)},
        "DefaultRuntime": names[0] if names else "",
    }


def _limits() -> dict[str, Any]:
    """Return what containers can be limited in here, by Docker's names."""
    there = cgroups.support()
    return {
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2" if cgroups.unified() else "1",
        "MemoryLimit": there.memory,
        "SwapLimit": there.swap,
        "CpuCfsPeriod": there.cpu_quota,
        "CpuCfsQuota": there.cpu_quota,
        "CPUShares": there.cpu_shares,
        "CPUSet": bool(there.cpus),
        "PidsLimit": there.pids,
        "OomKillDisable": there.oom_kill_disable,
        "IPv4Forwarding": True,
    }


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
