"""Dockerfile instructions as changes to a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from layerfs.errors import BadRequest
from layerfs.store.dockerfile import apply

PATH = {"Env": ["PATH=/bin", "HOME=/root"]}


@pytest.mark.parametrize(
    ("config", "changes", "expected"),
    [
        ({}, ['CMD ["node", "a b"]'], {"Cmd": ["node", "a b"]}),
        ({}, ["cmd echo $HOME"], {"Cmd": ["/bin/sh", "-c", "echo $HOME"]}),
        ({}, ["CMD [broken"], {"Cmd": ["/bin/sh", "-c", "[broken"]}),
        ({"Cmd": ["a"]}, ['ENTRYPOINT ["e"]'], {"Entrypoint": ["e"]}),
        ({}, ['CMD ["a"]', 'ENTRYPOINT ["e"]'], {"Cmd": ["a"], "Entrypoint": ["e"]}),
        (PATH, ["ENV PATH=/x:$PATH A=b"], {"Env": ["PATH=/x:/bin", "HOME=/root", "A=b"]}),
        ({"Env": ["A", "B"]}, ["ENV B=x$A"], {"Env": ["A", "B=x"]}),
        ({}, ["ENV A='$B' C=\"d e\" F=g\\ h"], {"Env": ["A=$B", "C=d e", "F=g h"]}),
        ({}, ["ENV A some words here"], {"Env": ["A=some words here"]}),
        ({}, ["ENV A=${X:-no} B=${X:+yes} C=\\$X"], {"Env": ["A=no", "B=", "C=$X"]}),
        ({}, ["LABEL a=1 b.c='2 3'"], {"Labels": {"a": "1", "b.c": "2 3"}}),
        (
            {"Labels": {"a": "0", "z": "9"}},
            ['LABEL a="1\\"2"'],
            {"Labels": {"a": '1"2', "z": "9"}},
        ),
        (
            {},
            ["EXPOSE 80 53/udp 8000-8001/TCP"],
            {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}},
        ),
        ({}, ['VOLUME ["/a b", "/c"]'], {"Volumes": {"/a b": {}, "/c": {}}}),
        ({}, ["VOLUME /a /b"], {"Volumes": {"/a": {}, "/b": {}}}),
        (PATH, ["USER $HOME"], {**PATH, "User": "/root"}),
        ({}, ["WORKDIR /a", "WORKDIR b/../c"], {"WorkingDir": "/a/c"}),
        ({}, ["ONBUILD RUN make", "ONBUILD CMD x"], {"OnBuild": ["RUN make", "CMD x"]}),
        ({}, ["# a comment\nUSER me\n\nWORKDIR \\\n /x"], {"User": "me", "WorkingDir": "/x"}),
        ({}, [""], {}),
    ],
)
def test_good(config: dict[str, Any], changes: list[str], expected: dict[str, Any]) -> None:
    before = repr(config)
    assert apply(config, changes) == expected
    assert repr(config) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("RUN rm -rf /", "RUN is not an instruction"),
        ("FROM x", "FROM is not an instruction"),
        ("CMD", "CMD needs an argument"),
        ("ENV A", "has no value"),
        ("ENV A=1 B", "use NAME=VALUE"),
        ("ENV =1", "use NAME=VALUE"),
        ("LABEL a='1", "never closed"),
        ("EXPOSE http", "'http' is not a port"),
        ("EXPOSE 0", "is not a port"),
        ("EXPOSE 70000", "is not a port"),
        ("EXPOSE 20-10", "is not a port"),
        ("USER a b", "exactly one"),
        ("ONBUILD FROM x", "cannot be followed by FROM"),
        ("ONBUILD ONBUILD USER x", "cannot be followed by ONBUILD"),
        ('VOLUME [""]', "a path is empty"),
    ],
)
def test_bad(change: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        apply({}, [change])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_makes_no_sense_is_refused() -> None:
    bad: tuple[dict[str, Any], ...] = ({"Env": [5]}, {"Labels": []}, {"User": 5})
    for config in bad:
        with pytest.raises(BadRequest, match=f"{next(iter(config))} in the image's configuration must be"):
            apply(config, ["WORKDIR /x"])
    for user in ("a\0b", "a\ud800b"):
        with pytest.raises(BadRequest, match="change:1:7: expected UTF-8 text"):
            apply({}, [f"USER {user}"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["ENV A=xx", *["ENV A=$A$A"] * 60], "a value is longer than 32 KiB"),
        (["EXPOSE 1-60000"], "more than 16384 ports"),
        (["EXPOSE 1-9000"] * 2, "more than 16384 ports"),
        (["USER a"] * 1001, "more than 1000 changes"),
        (["LABEL a=" + "b" * 40_000], "longer than 32 KiB"),
    ],
)
def test_the_work_for_changes_is_bounded(changes: list[str], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        apply({}, changes)
    assert apply({}, ["CMD " + "[" * 20_000])["Cmd"] == ["/bin/sh", "-c", "[" * 20_000]
