"""What older clients mean by a request to create a container."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from layerfs.container.versions import adapted
from layerfs.errors import BadRequest

BODY: dict[str, Any] = {
    "Healthcheck": {"StartInterval": 5},
    "NetworkingConfig": {"EndpointsConfig": {"a": {}}},
    "HostConfig": {
        "Annotations": {"a": "b"},
        "ConsoleSize": [1, 2],
        "Mounts": [
            {
                "Type": "bind", "ReadOnly": True, "VolumeOptions": {},
                "BindOptions": {"NonRecursive": True, "CreateMountpoint": True},
            }
        ],
    },
}  # fmt: skip


def test_members_that_came_later_are_ignored() -> None:
    before = copy.deepcopy(BODY)
    assert adapted(BODY, (1, 51)) is BODY
    new: Any = adapted(BODY, (1, 44))
    assert new == BODY
    old: Any = adapted(BODY, (1, 24))
    assert old["Healthcheck"] == {}
    assert old["HostConfig"] == {
        "IpcMode": "shareable",
        "Mounts": [{"Type": "bind", "ReadOnly": True, "BindOptions": {"ReadOnlyNonRecursive": True}}],
    }
    assert before == BODY
    assert adapted({}, (1, 41)) == {"HostConfig": {}}


@pytest.mark.parametrize(
    ("body", "version", "line"),
    [
        (
            {"HostConfig": {"Mounts": [{"VolumeOptions": {"Subpath": "x"}}]}},
            (1, 44),
            "Subpath needs API v1.45",
        ),
        (
            {"HostConfig": {"Mounts": [{"BindOptions": {"ReadOnlyForceRecursive": True}}]}},
            (1, 43),
            "ReadOnlyForceRecursive needs API v1.44",
        ),
        (
            {"NetworkingConfig": {"EndpointsConfig": {"b": {}, "a": {}}}},
            (1, 43),
            "multiple network endpoints: a, b",
        ),
    ],
)
def test_members_that_an_older_client_counts_on_are_refused(
    body: dict[str, Any], version: tuple[int, int], line: str
) -> None:
    assert adapted(body, (1, 45)) is body
    with pytest.raises(BadRequest, match=line):
        adapted(body, version)


@pytest.mark.parametrize("hostile", [None, 1, "x", [], [1], {"a": 1}, [{}], [[]]])
def test_wrong_types_are_left_to_whoever_checks_them(hostile: Any) -> None:
    bodies: list[Any] = [hostile, *({name: hostile} for name in BODY)]
    bodies += [{"HostConfig": {name: hostile}} for name in ("Mounts", "IpcMode", "ConsoleSize")]
    bodies += [{"HostConfig": {"Mounts": [{name: hostile}]}} for name in ("Type", "BindOptions", "ReadOnly")]
    for body in bodies:
        adapted(body, (1, 24))
