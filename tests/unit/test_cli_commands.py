"""The commands on a real store: what they print, and how they fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from layerfs import __version__
from layerfs.cli import COMMANDS, cli, main
from layerfs.store import Store
from tests.unit.control_support import make_tree

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs layerfs and returns its exit status, its output and its errors."""
    monkeypatch.setenv("LAYERFS_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("LAYERFS_ROOT", str(tmp_path / "store"))

    def call(*words: str) -> tuple[int, str, str]:
        status = main(words)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def debian(run: Run, tmp_path: Path) -> str:
    status, out, _ = run("import", str(make_tree(tmp_path / "tree")), "debian:12", "-m", "base")
    assert status == 0
    return out.strip()


def fails(found: tuple[int, str, str], status: int, text: str) -> None:
    """Check that a command failed with *status* and one line that has *text*."""
    assert found[0] == status
    assert text in found[2]
    assert re.fullmatch(r"layerfs: [^\n]+\n", found[2])


def test_import_prints_the_id(run: Run, debian: str) -> None:
    assert re.fullmatch("sha256:[0-9a-f]{64}", debian)
    assert run("images", "-q") == (0, f"{debian[7:19]}\n", "")
    assert run("images", "-q", "--no-trunc") == (0, f"{debian}\n", "")


def test_import_of_archives(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "tree.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(make_tree(tmp_path / "tree"), ".")
    assert run("import", str(archive), "one", "-c", 'CMD ["sh"]', "-c", "ENV A=1")[0] == 0
    with archive.open("rb") as stdin:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stdin})())
        assert run("import", "-", "two")[0] == 0
    for name in ("one", "two"):
        (found,) = json.loads(run("inspect", name)[1])
        assert found["Size"] == 3_000_006
    (found,) = json.loads(run("inspect", "one")[1])
    assert found["Config"] == {"Cmd": ["sh"], "Env": ["A=1"]}


def test_import_fails_clearly(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    fails(run("import", str(tmp_path / "nothing"), "x"), 1, "no such file or directory")
    fails(run("import", str(tmp_path / "tree"), "BAD"), 1, "invalid reference format")
    fails(run("import", str(tmp_path / "tree"), "x", "-c", "RUN y"), 1, "RUN is not an instruction")
    (tmp_path / "junk").write_text("junk" * 1000)
    fails(run("import", str(tmp_path / "junk"), "x"), 1, "not a tar archive")
    assert run("images", "-q") == (0, "", "")


def test_images_and_history(run: Run, debian: str) -> None:
    header, line = run("images")[1].splitlines()
    assert header.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert line.split()[:3] == ["debian", "12", debian[7:19]]
    assert line.endswith("3MB")
    assert run("images", "nothing")[1].count("\n") == 1
    header, line = run("history", "debian:12")[1].splitlines()
    assert header.split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert line.startswith(debian[7:19])
    assert line.endswith("3MB       base")
    assert "3000006" in run("history", "--human=false", "debian:12")[1]
    assert "3000006" in run("history", "--no-human", "debian:12")[1]
    assert "3MB" in run("history", "-H", "debian:12")[1]
    assert run("history", "-q", "--no-trunc", debian)[1] == f"{debian}\n"
    row = json.loads(run("history", "--format", "json", "debian:12")[1])
    assert (row["ID"], row["Size"], row["Comment"]) == (debian[7:19], "3MB", "base")
    row = json.loads(run("images", "--format", "json")[1])
    assert (row["Repository"], row["Tag"], row["ID"]) == ("debian", "12", debian[7:19])


def test_tag_rmi_and_verify(run: Run, debian: str, tmp_path: Path) -> None:
    assert run("tag", "debian:12", "host:5000/copy") == (0, "", "")
    assert run("rmi", "host:5000/copy") == (0, "Untagged: host:5000/copy:latest\n", "")
    assert run("verify", "debian:12")[0] == 0
    with Store(tmp_path / "store") as store:
        (layer,) = store.layers_of(store.resolve("debian:12"))
    (layer.path / "etc/motd").write_text("HELLO\n")
    status, out, _ = run("verify", "debian:12")
    assert status == 1
    assert f"{layer.id[:12]}  etc/motd: " in out
    status, out, err = run("rmi", "nothing", "debian:12")
    assert (status, err) == (1, "layerfs: no such image: nothing\n")
    assert out.splitlines()[:2] == ["Untagged: debian:12", f"Deleted: {debian}"]


def test_mounts_at_rest(run: Run, debian: str, tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        mount = store.create_mount("base", image=store.resolve("debian:12"))
        (store.layer(mount.upper or "").path / "new\nline").write_text("1")
    assert run("ps")[1].splitlines() == [
        "MOUNT ID   IMAGE     COMMAND   CREATED   STATUS    MOUNTPOINT   NAMES"
    ]
    assert run("ps", "-aq") == (0, f"{mount.id[:12]}\n", "")
    line = run("ps", "-a")[1].splitlines()[1]
    assert line.split()[:2] == [mount.id[:12], "debian:12"]
    assert line.endswith("base")
    assert json.loads(run("ps", "-a", "--format", "json")[1])["State"] == "created"
    assert run("diff", "base") == (0, "A /new line\n", "")
    status, out, _ = run("commit", "-m", "Add", "-a", "me", "-c", "USER me", "base", "made:1")
    assert status == 0
    assert json.loads(run("inspect", "made:1")[1])[0]["Id"] == out.strip()
    assert run("diff", "base") == (0, "", "")
    fails(run("status", "base"), 1, "base is not mounted; run 'layerfs mount --name base MOUNTPOINT'")
    fails(run("umount", "base"), 1, "base is not mounted")
    fails(run("umount", str(tmp_path)), 1, "no mount of this store is mounted on")
    fails(run("umount", "nothing"), 1, "no such mount: nothing")
    fails(run("rmi", "debian:12"), 1, "is using")
    status, out, err = run("inspect", "base", "nothing", "made:1")
    assert (status, err) == (1, "layerfs: no such mount or image: nothing\n")
    assert [item.get("Name") for item in json.loads(out)] == ["/base", None]
    status, out, err = run("rm", "nothing", "base")
    assert (status, out, err) == (1, "base\n", "layerfs: no such mount: nothing\n")
    assert run("ps", "-aq") == (0, "", "")
    assert run("status") == (0, "no mount is running\n", "")


def test_commands_need_a_store(run: Run, tmp_path: Path) -> None:
    fails(run("images"), 1, f"no store at {tmp_path}/store")
    assert not (tmp_path / "store").exists()
    (tmp_path / "file").write_text("")
    fails(run("--root", str(tmp_path / "file"), "images"), 1, "file")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("nothing",), "no such command: nothing; see 'layerfs --help'"),
        (("hystory", "debian"), "no such command: hystory. Did you mean history?"),
        (("unmount", "x"), "no such command: unmount. Did you mean umount?"),
        (("container", "startt"), "no such command: container startt. Did you mean container start?"),
        (("history",), "Missing argument 'IMAGE'; see 'layerfs history --help'"),
        (("history", "a", "b"), "unexpected extra argument"),
        (("history", "--wrong", "a"), "No such option"),
        (("rm",), "Missing argument"),
        (("--root",), "requires an argument"),
        (("mount",), "MOUNTPOINT"),
        (("mount", "/mnt"), "nothing to mount"),
        (("mount", "--image", "a", "--lower", "b", "/mnt"), "either an image or lower directories"),
        (("mount", "--image", "a", "--upper", "u", "--work", "w", "/mnt"), "goes with lower directories"),
        (("mount", "--lower", "a", "--upper", "u", "/mnt"), "go together"),
        (("mount", "--lower", "a", "--work", "w", "/mnt"), "go together"),
        (("mount", "--image", "a", "-o", "wrong", "/mnt"), "unknown mount option 'wrong'"),
        (("mount", "--image", "a", "-o", "root=/x", "/mnt"), "layerfs --root DIR mount"),
        (("none", "/mnt", "-o", "rw"), "nothing to mount"),
        (("none", "/mnt", "-o", "lowerdir=/a,upperdri=/u"), "unknown mount option 'upperdri=/u'"),
        (("none", "-o", "lowerdir=/a"), "Missing argument 'MOUNTPOINT'"),
        (("none", "/mnt", "more", "-o", "lowerdir=/a"), "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(run: Run, words: tuple[str, ...], text: str) -> None:
    fails(run(*words), 2, text)


def test_help(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z]", out, re.MULTILINE)
        status, text, _ = run(name, "--help")
        assert status == 0
        assert text.startswith(f"Usage: layerfs {name} ")
    assert run()[0] == 2
    assert run("--version") == (0, f"layerfs {__version__}\n", "")


def test_a_closed_pipe_is_no_error(run: Run, debian: str) -> None:
    script = "import sys; from layerfs.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", script, "inspect", *["debian:12"] * 200],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_module_runs_and_imports_nothing_slow(run: Run, debian: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "layerfs", "history", "debian:12"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert debian[7:19] in done.stdout
    slow = {"asyncio", "h11", "http.client", "pyfuse3", "tarfile", "trio", "xxhash", "zstandard"}
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not slow & loaded


EMPTY = [
    ("mount", "--name", ""), ("mount", "--image", ""), ("mount", "--lower", ""), ("mount", "--upper", ""),
    ("mount", "--work", ""), ("mount", "--config", ""), ("mount", "--image=x", ""), ("umount", ""),
    ("run", "--name", "", "x"), ("run", ""), ("commit", ""), ("commit", "x", ""), ("import", ""),
    ("import", "x", ""), ("tag", "", "x"), ("tag", "x", ""), ("rmi", ""), ("rm", "x", ""), ("inspect", ""),
    ("status", ""), ("images", ""), ("history", ""), ("verify", ""), ("load", ""), ("load", "-t", ""),
    ("load", "--platform", ""), ("load", "-i", ""), ("save", ""), ("save", "x", "-o", ""), ("export", ""),
    ("export", "x", "-o", ""), ("pull", ""), ("pull", "x", ""), ("push", "x", ""), ("kill", "x", "-s", ""),
    ("kill", ""), ("stop", ""), ("start", ""), ("wait", ""), ("logs", ""), ("exec", "", "x"), ("diff", ""),
    ("container", "rm", ""), ("image", "tag", "x", ""), ("pull", "x", "--authfile", ""),
]  # fmt: skip


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_name_is_wrong_usage(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    """It is what a script's unset variable makes; a mount without a name loses its data at its end."""
    fails(run(*words), 125 if words[0] == "run" else 2, "it is empty: give one, or leave it out")
    assert not (tmp_path / "store").exists()


def test_an_empty_store_is_wrong_usage(run: Run) -> None:
    fails(run("--root", "", "images"), 2, "--root is empty")


def test_every_text_of_every_command_is_known_to_be_checked() -> None:
    may_be_empty = set()
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter.type, (click.types.StringParamType, click.Path)):
                may_be_empty.add(parameter.name)
    assert may_be_empty == {
        "options", "entrypoint", "message", "author", "workdir", "user", "hostname", "domainname",
        "detach_keys", "form", "network", "platform", "target",
    }  # fmt: skip
