"""Changing a container's limits, and whether it is started again, while it runs or not (`docker update`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container import hostconfig, resources
from layerfs.container.members import Members, one_line
from layerfs.container.ociruntime import ContainerError, Runtime
from layerfs.container.stored import host_config
from layerfs.errors import BadRequest, Conflict, LayerfsError
from layerfs.host import cgroups
from layerfs.host.record import settled
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_WRITING = re.compile(r'failed to write "(?P<value>[^"]*)": write \S+/(?P<file>[\w.]+): (?P<why>.+)')
_IN_USE = re.compile(r"current usage|resource busy", re.IGNORECASE)
_NO_VALUE = re.compile(r"invalid argument|out of range|(minimum|maximum) allowed", re.IGNORECASE)


def update(root: Path, mount: Mount, body: object) -> list[str]:
    """Give the container *mount* what is in *body*: members of `Resources`, and `RestartPolicy`.

    What it does not name stays as it is. Returns warnings. Raises `BadRequest` for what is wrong or no kernel
    takes, `Conflict` for what does not go with what it has or uses; then nothing is changed.
    """
    if not mount.container:
        raise Conflict(f"{mount.name} is no container")
    with one_line():
        members = Members(body)
        limits = resources.taken(members)
        warnings = resources.check(limits, cgroups.support(), update=True)
        policy = hostconfig.restart_policy(members) if _names_policy(members) else None
        before = host_config(mount.container)
        try:
            if policy and policy["Name"] != "no" and before["AutoRemove"]:
                raise Conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            after = resources.merged(before, limits)
        except LayerfsError as error:
            raise _cannot(mount, error) from None
    if after["PidsLimit"] is not None and after["PidsLimit"] <= 0:
        after["PidsLimit"] = None
    if policy:
        after["RestartPolicy"] = policy
    record = settled(mount.id)  # one that is being started has the old limits
    if record is not None and record.alive() and (wanted := resources.for_runtime(limits, update=True)):
        try:
            Runtime(record.runtime).update(mount.id, wanted)
        except ContainerError as error:
            raise _cannot(mount, _refusal(str(error))) from None
    with Store(root) as store:
        store.update_container(mount.id, "update", HostConfig=after)
    return warnings


def _cannot(mount: Mount, error: LayerfsError) -> LayerfsError:
    return type(error)(f"Cannot update container {mount.id}: {error}")


def _refusal(said: str) -> LayerfsError:
    """Return what is wrong with limits that a runtime has not set; it *said* why."""
    if found := _WRITING.search(said):
        said = f"the kernel refuses {found['value']} for {found['file']}: {found['why']}"
    if _IN_USE.search(said):
        return Conflict(said)
    return BadRequest(said) if _NO_VALUE.search(said) else LayerfsError(said)


def _names_policy(members: Members) -> bool:
    policy = members.member("RestartPolicy")
    return policy is not None and bool(policy.text("Name"))
