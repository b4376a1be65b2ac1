"""Mount options: what they mean, and which are refused."""

from __future__ import annotations

import pytest

from layerfs.cli.options import MountOptions, parse_options
from layerfs.errors import UsageError


def test_overlay_options() -> None:
    found = parse_options(["lowerdir=/a:/b,upperdir=/u,workdir=/w,ro"])
    assert found == MountOptions(lowers=("/a", "/b"), upper="/u", work="/w", read_only=True)


@pytest.mark.parametrize(
    ("text", "lowers"),
    [
        (r"lowerdir=/a\:b:/c", ("/a:b", "/c")),
        (r"lowerdir=/a\,b:/c", ("/a,b", "/c")),
        (r"lowerdir=/a\\:/b", ("/a\\", "/b")),
        (r"lowerdir=/a\\\:b", ("/a\\:b",)),
        ("lowerdir=/with space:/ü", ("/with space", "/ü")),
        ("lowerdir=/a=b", ("/a=b",)),
        ("lowerdir=/a\\", ("/a\\",)),
    ],
)
def test_escapes(text: str, lowers: tuple[str, ...]) -> None:
    assert parse_options([text]).lowers == lowers


def test_escapes_in_other_values() -> None:
    found = parse_options([r"upperdir=/u\,1,workdir=/w\:2,name=n,image=host:5000/a/b:c,root=/r"])
    assert (found.upper, found.work) == ("/u,1", "/w:2")
    assert (found.name, found.image, found.root) == ("n", "host:5000/a/b:c", "/r")


def test_the_last_of_opposites_counts() -> None:
    found = parse_options(["ro,nosuid,dev", "rw,suid,noatime"])
    assert found.read_only is False
    assert found.switches == {"suid": True, "dev": True, "atime": False}


def test_options_for_others_are_accepted() -> None:
    text = (
        "defaults,auto,noauto,nofail,_netdev,user,users,x-systemd.automount,x-gvfs-show,relatime,comment=x,,"
    )
    assert parse_options([text]) == MountOptions()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lowerdir", "lowerdir needs a value"),
        ("upperdir=", "upperdir needs a value"),
        ("lowerdir=/a::/b", "name is empty"),
        ("lowerdir=:/b", "name is empty"),
        ("lowerdri=/a", "'lowerdri=/a'"),
        ("ro=1", "'ro=1'"),
        ("suid=yes", "'suid=yes'"),
        ("index=on", "'index=on'"),
        ("defaults2", "'defaults2'"),
        ("partial=some", "fill, keep, off, not 'some'"),
        ("partial", "fill, keep, off"),
    ],
)
def test_bad_options_are_named(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        parse_options([f"ro,{text}"])
    assert caught.value.exit_code == 2
