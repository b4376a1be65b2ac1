"""Changing a container's limits, and whether it is started again, while it runs or not (`docker update`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container import hostconfig, resources
from layerfs.container.members import Members, one_line
from layerfs.container.ociruntime import Runtime
from layerfs.container.stored import host_config
from layerfs.errors import BadRequest, Conflict
from layerfs.host import cgroups
from layerfs.host.record import look
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Mount


def update(root: Path, mount: Mount, body: object) -> list[str]:
    """Give the container *mount* what is in *body*: members of `Resources`, and `RestartPolicy`.

    What it does not name stays as it is. Returns warnings. Raises `BadRequest` for what is wrong, and
    `LayerfsError` if the kernel refuses: then nothing is changed.
    """
    if not mount.container:
        raise Conflict(f"{mount.name} is no container")
    with one_line():
        members = Members(body)
        limits = resources.taken(members)
        warnings = resources.check(limits, cgroups.support(), update=True)
        policy = hostconfig.restart_policy(members) if _names_policy(members) else None
        before = host_config(mount.container)
        if policy and policy["Name"] != "no" and before["AutoRemove"]:
            raise BadRequest(
                "Restart policy cannot be updated because AutoRemove is enabled for the container"
            )
        after = resources.merged(before, limits)
    if after["PidsLimit"] is not None and after["PidsLimit"] <= 0:
        after["PidsLimit"] = None
    if policy:
        after["RestartPolicy"] = policy
    record = look(mount.id)
    if record is not None and record.alive() and (wanted := resources.for_runtime(limits, update=True)):
        Runtime(record.runtime).update(mount.id, wanted)
    with Store(root) as store:
        store.update_container(mount.id, "update", HostConfig=after)
    return warnings


def _names_policy(members: Members) -> bool:
    policy = members.member("RestartPolicy")
    return policy is not None and bool(policy.text("Name"))
