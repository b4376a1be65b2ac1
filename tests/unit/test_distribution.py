"""What images are called elsewhere, and what becomes of skopeo's options and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.distribution import skopeo
from layerfs.distribution.remotes import Remote, parse_remote
from layerfs.distribution.skopeo import Options
from layerfs.errors import Forbidden, LayerfsError, NoSpace, NotFound, UsageError
from layerfs.store import Store


@pytest.mark.parametrize(
    ("text", "whole", "name"),
    [
        ("debian", "docker://debian", "debian:latest"),
        ("debian:12", "docker://debian:12", "debian:12"),
        ("docker:24", "docker://docker:24", "docker:24"),
        ("localhost:5000/a/b", "docker://localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("docker://docker.io/library/debian:12", "docker://docker.io/library/debian:12", "debian:12"),
        ("docker://debian@sha256:" + "0" * 64, "docker://debian@sha256:" + "0" * 64, None),
        ("docker-daemon:debian:12", "docker-daemon:debian:12", "debian:12"),
        ("docker-daemon:sha256:" + "0" * 64, "docker-daemon:sha256:" + "0" * 64, None),
        ("docker-archive:/a/b.tar", "docker-archive:/a/b.tar", None),
        ("docker-archive:/a/b.tar:x/y:1", "docker-archive:/a/b.tar:x/y:1", "x/y:1"),
        ("docker-archive:/a/b.tar:@0", "docker-archive:/a/b.tar:@0", None),
        ("containers-storage:localhost/x", "containers-storage:localhost/x", "localhost/x:latest"),
        ("containers-storage:[vfs@/a:b+/c]x:1", "containers-storage:[vfs@/a:b+/c]x:1", "x:1"),
        ("oci:/images/debian:12", "oci:/images/debian:12", "debian:12"),
        ("oci:/images/layout:host/debian:12", "oci:/images/layout:host/debian:12", "host/debian:12"),
        ("oci:/images/layout", "oci:/images/layout", None),
        ("oci:/images/LAYOUT:1", "oci:/images/LAYOUT:1", None),
        ("oci-archive:/a.tar:debian:12", "oci-archive:/a.tar:debian:12", "debian:12"),
        ("dir:/a/b", "dir:/a/b", None),
    ],
)
def test_remotes(text: str, whole: str, name: str | None) -> None:
    remote = parse_remote(text)
    assert (str(remote), remote.image_name()) == (whole, name)


@pytest.mark.parametrize("text", ["", "docker://", "dir:", "ftp://x", "https://registry/x"])
def test_what_is_no_remote(text: str) -> None:
    with pytest.raises(UsageError):
        parse_remote(text)


def test_options() -> None:
    options = Options(
        platform="linux/arm/v7", tls_verify=False, authfile="/auth", creds="me:secret", policy="/policy.json"
    )
    assert options.for_all() == [
        "--policy", "/policy.json",
        "--override-os", "linux", "--override-arch", "arm", "--override-variant", "v7",
    ]  # fmt: skip
    assert options.for_access("src-") == [
        "--src-tls-verify=false", "--src-authfile", "/auth", "--src-creds", "me:secret",
    ]  # fmt: skip
    assert (Options().for_all(), Options(tls_verify=True).for_access("")) == ([], ["--tls-verify=true"])
    for bad in ("linux", "linux/", "a/b/c/d", ""):
        with pytest.raises(UsageError, match="bad platform"):
            Options(platform=bad).for_all()


@pytest.mark.parametrize(
    ("script", "kind", "line"),
    [
        (
            'echo \'time="x" level=fatal msg="manifest unknown: \\"x\\""\' >&2; exit 1',
            NotFound,
            'unknown: "x"',
        ),
        ("echo 'time=x level=fatal msg=\"unauthorized\"' >&2; exit 1", Forbidden, "unauthorized"),
        (
            "echo 'level=fatal msg=\"write /a: no space left on device\"' >&2; exit 1",
            NoSpace,
            "no space left",
        ),
        ("echo something else >&2; echo >&2; exit 3", LayerfsError, "something else"),
        ("exit 3", LayerfsError, "skopeo failed (3)"),
        ("kill -9 $$", LayerfsError, "skopeo was killed (SIGKILL)"),
    ],
)
def test_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[LayerfsError], line: str
) -> None:
    """Whatever a program called skopeo says when it fails becomes one line."""
    program = tmp_path / "skopeo"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    source, target = Remote("dir", "/a"), Remote("dir", "/b")
    with (
        Store(tmp_path / "store") as store,
        store.scratch() as scratch,
        pytest.raises(LayerfsError) as caught,
    ):
        skopeo.copy(
            source, target, Options(), side="src", scratch=scratch, doing="pull dir:/a", progress=False
        )
    assert type(caught.value) is kind
    assert str(caught.value).startswith("cannot pull dir:/a: ")
    assert line in str(caught.value)


def test_warnings_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "skopeo"
    program.write_text(
        '#!/bin/sh\necho \'level=warning msg="old manifest"\' >&2\necho \'{"Layers": ["a"]}\'\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with Store(tmp_path / "store") as store, store.scratch() as scratch:
        found = skopeo.layers(Remote("dir", "/a"), Options(), scratch=scratch, doing="pull it")
    assert found == ["a"]
    assert capsys.readouterr().err == "layerfs: skopeo: old manifest\n"
