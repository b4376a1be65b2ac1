"""Where a build's context comes from, its Dockerfile, and what is left out of it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
from pathlib import Path

import pytest
import zstandard

from layerfs.archive.limits import Limits
from layerfs.build import context
from layerfs.build.sources import DEEPEST, Source, SourceDirectory
from layerfs.errors import BadRequest, LayerfsError, NotFound
from tests.build.archives import archive, directory, file, link, of_tree


def fill(top: Path, **files: str) -> Path:
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return top


def names(source: Source) -> set[bytes]:
    """Return every path in *source*."""
    found: set[bytes] = set()

    def look(place: SourceDirectory, prefix: bytes) -> None:
        for item in place.items():
            found.add(prefix + item.name)
            if item.st.st_mode & 0o170000 == 0o040000:
                look(place.enter(item.name), prefix + item.name + b"/")

    look(source.root(), b"")
    return found


def test_a_directory(tmp_path: Path) -> None:
    fill(tmp_path, **{"Dockerfile": "FROM a", "src/x": "x"})
    with context.from_directory(tmp_path) as opened:
        assert (opened.dockerfile, opened.dockerfile_name) == ("FROM a", "Dockerfile")
        assert names(opened.source) == {b"Dockerfile", b"src", b"src/x"}


def test_names_of_dockerfiles(tmp_path: Path) -> None:
    fill(tmp_path, **{"dockerfile": "FROM small", "sub/My.Dockerfile": "FROM mine"})
    (tmp_path / "link").symlink_to("/sub/My.Dockerfile")
    for wanted, text in (
        (None, "small"),
        ("sub/My.Dockerfile", "mine"),
        ("link", "mine"),
        ("/dockerfile", "small"),
    ):
        with context.from_directory(tmp_path, wanted) as opened:
            assert opened.dockerfile == f"FROM {text}"
    with context.from_directory(tmp_path, b"\xef\xbb\xbfFROM read") as opened:
        assert (opened.dockerfile, opened.dockerfile_name) == ("FROM read", "-")


def test_a_dockerfile_outside_of_the_context(tmp_path: Path) -> None:
    here = fill(tmp_path / "here", **{"a": "a", "b": "b", ".dockerignore": "a"})
    elsewhere = fill(tmp_path / "elsewhere", **{"F": "FROM f"})
    with context.from_directory(here, elsewhere / "F") as opened:
        assert opened.dockerfile == "FROM f"
        assert names(opened.source) == {b"b", b".dockerignore"}
    fill(elsewhere, **{"F.dockerignore": "b\n.dockerignore"})
    with context.from_directory(here, elsewhere / "F") as opened:
        assert names(opened.source) == {b"a"}
    with pytest.raises(NotFound, match="no such file"):
        context.from_directory(here, elsewhere / "G")


@pytest.mark.parametrize("path", ["../secret", "/secret", "../../secret"])
def test_a_dockerfile_is_not_followed_out_of_the_context(tmp_path: Path, path: str) -> None:
    here = fill(tmp_path / "here", **{"x": "x"})
    fill(tmp_path, secret="secret")
    (here / "Dockerfile").symlink_to(path if path[0] == "." else tmp_path / path[1:])
    with pytest.raises(NotFound):
        context.from_directory(here)
    with pytest.raises(NotFound):
        context.from_directory(here, path)


def test_no_dockerfile(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="the build context has no Dockerfile: name the Dockerfile with -f"):
        context.from_directory(tmp_path)
    with pytest.raises(NotFound, match="no other"):
        context.from_directory(tmp_path, "other")
    with pytest.raises(NotFound, match="No such file"):
        context.from_directory(tmp_path / "missing")
    (tmp_path / "Dockerfile").mkdir()
    with pytest.raises(BadRequest, match="is not a file"):
        context.from_directory(tmp_path)


def test_a_pipe_for_a_dockerfile_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "Dockerfile")
    with pytest.raises(BadRequest, match="is not a file"):
        context.from_directory(tmp_path)
    with pytest.raises(BadRequest, match="is not a file"):
        context.from_directory(tmp_path, tmp_path / "Dockerfile")


def test_a_dockerfile_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes(b"FROM a\nRUN \xff\n")
    with context.from_directory(tmp_path) as opened:
        assert opened.dockerfile == "FROM a\nRUN \udcff\n"
    with pytest.raises(BadRequest, match="zero byte"):
        context.from_dockerfile(b"FROM a\0")
    with (tmp_path / "Dockerfile").open("wb") as large:
        large.truncate(1 << 30)
    with pytest.raises(BadRequest, match="more than 16 MiB"):
        context.from_directory(tmp_path)


def test_what_is_ignored(tmp_path: Path) -> None:
    fill(
        tmp_path,
        **{
            "Dockerfile": "FROM a",
            ".dockerignore": "# all\n**/*.log\nnode_modules\n!node_modules/kept\n!keep.log\n.dockerignore\n",
            "a.log": "",
            "keep.log": "",
            "src/b.log": "",
            "src/c": "",
            "node_modules/kept/x": "",
            "node_modules/gone/x": "",
        },
    )
    with context.from_directory(tmp_path) as opened:
        assert names(opened.source) == {
            *(b"Dockerfile", b"keep.log", b"src", b"src/c"),
            *(b"node_modules", b"node_modules/kept", b"node_modules/kept/x"),
        }
        place = opened.source.root()
        assert place.find(b"a.log") is None
        assert place.find(b"src") is not None
        assert place.enter(b"node_modules").find(b"gone") is None


def test_an_ignored_dockerfile_is_still_read(tmp_path: Path) -> None:
    fill(tmp_path, **{"Dockerfile": "FROM a", ".dockerignore": "*\n!x", "x": "", "y": ""})
    with context.from_directory(tmp_path) as opened:
        assert opened.dockerfile == "FROM a"
        assert names(opened.source) == {b"x"}


def test_a_dockerfile_of_its_own_has_ignores_of_its_own(tmp_path: Path) -> None:
    fill(
        tmp_path,
        **{
            "my.Dockerfile": "FROM a",
            "my.Dockerfile.dockerignore": "x",
            ".dockerignore": "*",
            "x": "",
            "y": "",
        },
    )
    with context.from_directory(tmp_path, "my.Dockerfile") as opened:
        assert names(opened.source) == {
            b"my.Dockerfile",
            b"my.Dockerfile.dockerignore",
            b".dockerignore",
            b"y",
        }


# -- archives ------------------------------------------------------------------------------------------


FORMS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("form", FORMS)
def test_an_archive(tmp_path: Path, form: str) -> None:
    top = fill(tmp_path / "top", **{"Dockerfile": "FROM a", "src/x": "x", ".dockerignore": "Dockerfile\nsrc"})
    (tmp_path / "scratch").mkdir()
    data = FORMS[form](of_tree(top))
    with context.from_tar(io.BytesIO(data), tmp_path / "scratch") as opened:
        assert opened.dockerfile == "FROM a"
        assert names(opened.source) == {b"src", b"src/x", b".dockerignore"}, (
            "the client has left out the rest"
        )


def test_names_like_whiteouts_and_absolute_names_in_an_archive(tmp_path: Path) -> None:
    data = archive(
        file("/Dockerfile", b"FROM a"),
        directory(".wh.d"),
        file(".wh.d/.wh.x"),
        link("l", "/Dockerfile", hard=True),
    )
    with context.from_tar(io.BytesIO(data), tmp_path) as opened:
        assert names(opened.source) == {b"Dockerfile", b".wh.d", b".wh.d/.wh.x", b"l"}


def test_a_dockerfile_in_place_of_an_archive(tmp_path: Path) -> None:
    with context.from_tar(io.BytesIO(b"FROM a\n"), tmp_path) as opened:
        assert opened.dockerfile == "FROM a\n"
        assert names(opened.source) == set()
    with pytest.raises(BadRequest, match="no tar archive"):
        context.from_tar(io.BytesIO(b"x" * (17 << 20)), tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        (file("../Dockerfile"),),
        (file("a/../../Dockerfile"),),
        (link("out", "/"), file("out/Dockerfile")),
        (link("Dockerfile", "../../etc/passwd", hard=True),),
        (link("Dockerfile", "/etc/passwd"),),
        (link("Dockerfile", "Dockerfile"),),
        (directory("Dockerfile"),),
        (file("x" * 300),),
    ],
)
def test_hostile_archives(tmp_path: Path, members: tuple[object, ...]) -> None:
    inside = tmp_path / "a/b/scratch"
    inside.mkdir(parents=True)
    with pytest.raises(LayerfsError) as caught:
        context.from_tar(io.BytesIO(archive(*members)), inside)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "scratch"}


def test_an_archive_that_is_too_much(tmp_path: Path) -> None:
    data = archive(file("Dockerfile"), *(file(f"f{number}") for number in range(100)))
    with pytest.raises(BadRequest, match="more than 50 files"):
        context.from_tar(io.BytesIO(data), tmp_path, limits=Limits(files=50))


def test_noise_and_archives_that_end_too_early(tmp_path: Path) -> None:
    random.seed(7)
    whole = gzip.compress(archive(file("Dockerfile", b"FROM a"), file("x", random.randbytes(5000))))
    for number in range(60):
        data = bytearray(whole[: random.randrange(1, len(whole))] if number % 2 else whole)
        for _ in range(number % 3):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        scratch = tmp_path / str(number)
        scratch.mkdir()
        said = ""
        try:
            context.from_tar(io.BytesIO(data), scratch).__exit__(None, None, None)
        except LayerfsError as error:
            said = str(error)
        assert "\n" not in said


def test_a_check_stops_the_unpacking(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Stopped

    data = archive(*(file(f"f{number}") for number in range(100)))
    with pytest.raises(Stopped):
        context.from_tar(io.BytesIO(data), tmp_path, check=check)


def test_ignored_directories_in_directories_have_an_end(tmp_path: Path) -> None:
    fill(tmp_path, **{"Dockerfile": "FROM a", ".dockerignore": "d\n!**/x"})
    os.makedirs(tmp_path / "/".join(["d"] * (DEEPEST + 50)))
    with (
        context.from_directory(tmp_path) as opened,
        pytest.raises(BadRequest, match="more than 256 directories"),
    ):
        names(opened.source)


def test_descriptors_are_closed(tmp_path: Path) -> None:
    fill(tmp_path, **{"Dockerfile": "FROM a", "src/x": "x"})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with context.from_directory(tmp_path):
            pass
        with pytest.raises(NotFound):
            context.from_directory(tmp_path, "other")
    assert len(os.listdir("/proc/self/fd")) == before
