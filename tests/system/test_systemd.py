"""The systemd service: its unit, its installation, and the daemon as the service manager sees it."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from layerfs.cli.config import read_config
from tests.conftest import detach, mounts_below

CHECKOUT = Path(__file__).parents[2]
NAME = "web"
PATIENCE = 30  # seconds until a test gives up waiting

# systemd.exec(5): each of these gives the service a mount namespace, in which its mount would be hidden.
PRIVATE = {
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "InaccessiblePaths",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateTmp",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
}


# -- the unit and its installation ------------------------------------------------------------------


@pytest.fixture
def layerfs() -> Path:
    """The installed command."""
    return Path(sys.executable).with_name("layerfs")


def install(destination: Path, *arguments: str, command: Path) -> str:
    """Run scripts/install-service for a package in *destination*; return what it printed."""
    done = subprocess.run(
        [CHECKOUT / "scripts/install-service", *arguments],
        env={**os.environ, "DESTDIR": str(destination), "PREFIX": "/usr", "LAYERFS": str(command)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout


def files(top: Path) -> set[str]:
    """Return the paths of the files below *top*."""
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}


UNITS = {
    f"usr/lib/systemd/system/{name}"
    for name in ("layerfs@.service", "layerfs.socket", "layerfs-engine.service")
}


def test_systemd_accepts_the_unit(tmp_path: Path, layerfs: Path) -> None:
    install(tmp_path, command=layerfs)
    unit = tmp_path / "usr/lib/systemd/system/layerfs@.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", unit.with_name("layerfs@example.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    about_us = [line for line in done.stderr.splitlines() if "layerfs" in line]
    assert (done.returncode, about_us) == (0, [])
    assert f"\nExecStart={layerfs} mount --foreground --config /etc/layerfs/%i.toml\n" in unit.read_text()


def test_systemd_accepts_the_units_of_the_engine(tmp_path: Path, layerfs: Path) -> None:
    install(tmp_path, command=layerfs)
    units = tmp_path / "usr/lib/systemd/system"
    done = subprocess.run(
        ["systemd-analyze", "verify", units / "layerfs.socket", units / "layerfs-engine.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    about_us = [line for line in done.stderr.splitlines() if "layerfs" in line]
    assert (done.returncode, about_us) == (0, [])
    assert f"\nExecStart={layerfs} engine\n" in (units / "layerfs-engine.service").read_text()


@pytest.mark.parametrize("name", ["layerfs@.service", "layerfs-engine.service"])
def test_the_mount_is_not_hidden_from_the_machine(name: str) -> None:
    unit = (CHECKOUT / "systemd" / name).read_text()
    assert not set(re.findall(r"^(\w+)=", unit, re.MULTILINE)) & PRIVATE


def test_the_service_of_a_mount_is_confined() -> None:
    unit = (CHECKOUT / "systemd/layerfs@.service").read_text()
    used = set(re.findall(r"^(\w+)=", unit, re.MULTILINE))
    assert {"NoNewPrivileges", "CapabilityBoundingSet", "SystemCallFilter"} <= used


def test_the_end_of_the_engine_ends_nothing_else() -> None:
    unit = (CHECKOUT / "systemd/layerfs-engine.service").read_text()
    assert "\nKillMode=process\n" in unit
    assert "\nSendSIGKILL=no\n" in unit
    assert (
        "\nListenStream=/run/layerfs/engine.sock\nSocketMode=0600\n"
        in (CHECKOUT / "systemd/layerfs.socket").read_text()
    )


def test_installing_twice_and_uninstalling(tmp_path: Path, layerfs: Path) -> None:
    for _ in range(2):
        install(tmp_path, command=layerfs)
        assert files(tmp_path) == {*UNITS, "etc/layerfs/example.toml"}
    install(tmp_path, "uninstall", command=layerfs)
    assert files(tmp_path) == set()
    assert not (tmp_path / "etc/layerfs").exists()


def test_the_example_names_only_what_there_is(tmp_path: Path) -> None:
    example = (CHECKOUT / "systemd/example.toml").read_text()
    everything = tmp_path / "everything.toml"
    everything.write_text(re.sub(r"^# (\w+ = )", r"\1", example, flags=re.MULTILINE))
    values = read_config(everything)
    assert values.keys() == {
        "name",
        "mountpoint",
        "image",
        "lower",
        "upper",
        "work",
        "read_only",
        "options",
        "root",
    }


def test_a_changed_configuration_stays(tmp_path: Path, layerfs: Path) -> None:
    example = tmp_path / "etc/layerfs/example.toml"
    install(tmp_path, command=layerfs)
    example.write_text('name = "mine"\n')
    install(tmp_path, command=layerfs)
    install(tmp_path, "uninstall", command=layerfs)
    assert example.read_text() == 'name = "mine"\n'


# -- the daemon under a service manager -------------------------------------------------------------


class Service:
    """A daemon started as systemd would, and the notifications that it sends."""

    def __init__(self, directory: Path, manager: socket.socket, more: str = "") -> None:
        self.directory = directory
        self.manager = manager
        self.mountpoint = directory / "mnt"
        self.config = directory / "web.toml"
        for name in ("base", "upper", "work", "mnt"):
            (directory / name).mkdir(exist_ok=True)
        (directory / "base/greeting").write_text("hello\n")
        self.config.write_text(
            f"""name = "{NAME}"
mountpoint = "{self.mountpoint}"
lower = ["{directory}/base"]
upper = "{directory}/upper"
work = "{directory}/work"
{more}"""
        )
        self.process: subprocess.Popen[str] | None = None

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """Start it and wait for READY=1; whatever happens, it does not outlive the block."""
        with self.started() as process:
            while not select.select([self.manager], [], [], 0.1)[0]:
                assert process.poll() is None, process.communicate()[1]
            fields = self.receive()
            assert fields["READY"] == "1"
            assert fields["MAINPID"] == str(process.pid)
            assert str(self.mountpoint) in fields["STATUS"]
            yield process

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        """Start it; whatever happens, it does not outlive the block, and nor does its mount."""
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.manager.getsockname()),
            "LAYERFS_ROOT": str(self.directory / "store"),
            "LAYERFS_RUN": str(self.directory / "run"),
        }
        words = [sys.executable, "-m", "layerfs", "mount", "--foreground", "--config", str(self.config)]
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stderr and not process.stderr.closed:
                print(process.stderr.read())  # pytest shows it when the test fails
                process.stderr.close()
            for mountpoint in mounts_below(self.mountpoint):
                detach(mountpoint)

    def receive(self) -> dict[str, str]:
        """Return the fields of the next notification."""
        lines = self.manager.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def stop(self, process: subprocess.Popen[str]) -> str:
        """Stop it as systemd does; return its log, after checking that it said so and ended well."""
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGTERM)
        fields = self.receive()
        assert fields["STOPPING"] == "1"
        assert str(self.mountpoint) in fields["STATUS"]
        log = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, log
        assert not mounts_below(self.mountpoint)
        return log


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def service(tmp_path: Path, manager: socket.socket) -> Service:
    """A service that is not started yet."""
    return Service(tmp_path, manager)


@pytest.mark.root
def test_ready_means_that_the_mount_answers(service: Service) -> None:
    with service.running() as process:
        assert (service.mountpoint / "greeting").read_text() == "hello\n"
        (service.mountpoint / "new").write_text("written\n")
        log = service.stop(process)
    assert "lazily" not in log
    assert (service.directory / "upper/new").read_text() == "written\n"


@pytest.mark.root
def test_sigterm_unmounts_lazily_while_files_are_open(service: Service) -> None:
    with service.running() as process:
        held = os.open(service.mountpoint / "greeting", os.O_RDONLY)
        try:
            log = service.stop(process)
        finally:
            with suppress(OSError):  # nobody is there to hear of the close
                os.close(held)
    assert "lazily" in log


@pytest.mark.root
def test_sighup_changes_nothing(service: Service) -> None:
    with service.running() as process:
        process.send_signal(signal.SIGHUP)
        (service.mountpoint / "new").write_text("after the hangup\n")
        assert process.poll() is None
        service.stop(process)  # the first word after READY=1 is STOPPING=1
    assert (service.directory / "upper/new").read_text() == "after the hangup\n"


@pytest.mark.root
def test_the_next_start_finds_what_was_written(tmp_path: Path, manager: socket.socket) -> None:
    service = Service(tmp_path, manager, 'options = "nosuid,nodev"\n')
    for turn in range(3):
        with service.running() as process:
            (service.mountpoint / f"turn-{turn}").write_text("")
            assert len(list(service.mountpoint.glob("turn-*"))) == turn + 1
            service.stop(process)


@pytest.mark.root
def test_a_restart_after_a_kill(service: Service) -> None:
    with service.running() as process:
        (service.mountpoint / "new").write_text("written\n")
        os.sync()
        process.kill()
        process.wait(PATIENCE)
        assert mounts_below(service.mountpoint)  # dead, and in the way
        with service.running() as again:
            assert (service.mountpoint / "new").read_text() == "written\n"
            service.stop(again)


def test_a_wrong_configuration_is_not_tried_again(service: Service) -> None:
    service.config.write_text('mountpiont = "/srv"\n')
    with service.started() as process:
        log = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2
    assert "mountpiont" in log
    assert len(log.splitlines()) == 1


# -- the engine under a service manager -------------------------------------------------------------


@pytest.fixture
def activated(tmp_path: Path, manager: socket.socket) -> Iterator[Activated]:
    """An engine that is started by the first client, as layerfs.socket has it."""
    engine = Activated(tmp_path, manager)
    try:
        yield engine
    finally:
        engine.end()


class Activated:
    """The socket of an engine, with systemd's own program for activation behind it."""

    def __init__(self, directory: Path, manager: socket.socket) -> None:
        self.directory = directory
        self.path = directory / "engine.sock"
        self.manager = manager
        (directory / "run").mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(manager.getsockname()),
            "LAYERFS_ROOT": str(directory / "store"),
            "LAYERFS_RUN": str(directory / "run"),
            "LAYERFS_ENGINE": str(self.path),
        }
        names = ("NOTIFY_SOCKET", "LAYERFS_ROOT", "LAYERFS_RUN")
        passed = [f"--setenv={name}={self.environment[name]}" for name in names]
        self.process = subprocess.Popen(
            [
                "systemd-socket-activate",
                f"--listen={self.path}",
                *passed,
                sys.executable,
                "-m",
                "layerfs",
                "engine",
            ],
            env=self.environment,
        )
        deadline = time.monotonic() + PATIENCE
        while not self.path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def layerfs(self, *words: str) -> str:
        command = [sys.executable, "-m", "layerfs", *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=PATIENCE
        ).stdout

    def receive(self) -> str:
        return self.manager.recv(4096).decode()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for mountpoint in mounts_below(self.directory):
            detach(mountpoint)


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd-socket-activate")
def test_the_first_client_starts_the_engine_and_its_end_ends_no_mount(activated: Activated) -> None:
    (activated.directory / "tree").mkdir()
    (activated.directory / "tree/greeting").write_text("hello\n")
    (activated.directory / "mnt").mkdir()
    activated.layerfs("import", str(activated.directory / "tree"), "base")
    assert ", the engine\n" in activated.layerfs("version")
    assert "READY=1" in activated.receive()
    activated.layerfs("mount", "--image", "base", "--name", "base", str(activated.directory / "mnt"))
    activated.process.send_signal(signal.SIGTERM)
    assert "STOPPING=1" in activated.receive()
    assert activated.process.wait(PATIENCE) == 0
    assert (activated.directory / "mnt/greeting").read_text() == "hello\n"
    activated.environment["LAYERFS_ENGINE"] = "none"
    activated.layerfs("rm", "-f", str(activated.directory / "mnt"))
    assert not mounts_below(activated.directory)
