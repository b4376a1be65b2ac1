"""Databases on a mount: what they were told is safe is there, whoever is killed."""

from __future__ import annotations

import os
import pwd
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Stack, wait_until
from tests.system.programs import PATIENCE, run

pytestmark = pytest.mark.root
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path("initdb")).parent
AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
WRITER = """\
import itertools, sqlite3, sys, time
path, writer = sys.argv[1:]
database = sqlite3.connect(path, timeout=60, isolation_level=None)
for number in itertools.count():
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO rows VALUES (?, ?, randomblob(3000))", (writer, number))
    database.execute("UPDATE sums SET rows = rows + 1")
    database.execute("COMMIT")
    print(number, flush=True)
    time.sleep(0.005)  # SQLite has no queue: give the others a chance
"""


class Writer:
    """A process that adds rows to an SQLite database, and says which are committed."""

    def __init__(self, path: Path, log: Path, number: int) -> None:
        self.log = log
        self.number = number
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WRITER, path, str(number)], stdout=output, stderr=output
            )

    def committed(self) -> int:
        """Return how many rows were committed."""
        lines = self.log.read_text().split("\n")[:-1]
        assert lines == [str(number) for number in range(len(lines))]
        return len(lines)

    def kill(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()
        assert self.process.wait(timeout=10) == -signal.SIGKILL


def make_database(path: Path, mode: str) -> None:
    """Make a database with tables to write to."""
    with closing(sqlite3.connect(path)) as database:
        assert database.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == mode
        database.executescript(
            "CREATE TABLE rows (writer, number, filler);"
            "CREATE TABLE sums (rows); INSERT INTO sums VALUES (0);"
        )


def check_database(path: Path, mode: str, committed: dict[int, int]) -> None:
    """Check that the database is whole and has the rows that were *committed*, at most one more each."""
    with closing(sqlite3.connect(path, timeout=60)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == mode
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (rows,) = database.execute("SELECT count(*) FROM rows").fetchone()
        assert database.execute("SELECT rows FROM sums").fetchone() == (rows,)
        for writer, count in committed.items():
            query = "SELECT count(*), max(number) + 1 FROM rows WHERE writer = ?"
            found, numbered = database.execute(query, (str(writer),)).fetchone()
            assert found == numbered
            assert count <= found <= count + 1


@pytest.mark.parametrize("mode", ["delete", "wal"])
class TestSqlite:
    """A database that comes from a lower layer, several processes writing to it."""

    @pytest.fixture
    def writers(self, stack: Stack, mode: str) -> Iterator[list[Writer]]:
        """Three processes at work on the database `mnt/db`."""
        make_database(stack.bottom / "db", mode)
        mnt = stack.mount()
        writers = [Writer(mnt / "db", stack.directory / f"log{number}", number) for number in range(3)]
        try:
            wait_until(lambda: all(writer.committed() for writer in writers), patience=PATIENCE)
            wait_until(lambda: sum(writer.committed() for writer in writers) > 20, patience=PATIENCE)
            yield writers
        finally:
            for writer in writers:
                writer.process.kill()
                writer.process.wait(timeout=10)

    def test_writers_are_killed(self, writers: list[Writer], stack: Stack, mode: str) -> None:
        writers[0].kill()
        first = writers[0].committed()
        goal = sum(writer.committed() for writer in writers) + 10
        wait_until(lambda: sum(writer.committed() for writer in writers) >= goal, patience=PATIENCE)
        stack.commit()
        for writer in writers[1:]:
            writer.kill()
        committed = {writer.number: writer.committed() for writer in writers}
        assert committed[0] == first
        check_database(stack.mnt / "db", mode, committed)
        check_database(stack.remount() / "db", mode, committed)
        check_database(stack.bottom / "db", mode, {})

    def test_the_daemon_is_killed(self, writers: list[Writer], stack: Stack, mode: str) -> None:
        stack.layerfs.kill(stack.name)
        for writer in writers:
            assert writer.process.wait(timeout=20) != 0
        stack.layerfs.ok("mount", "--name", stack.name, stack.mnt)
        committed = {}
        for writer in writers:
            log = writer.log.read_text().split("\n")
            committed[writer.number] = sum(line.isdigit() for line in log)
        check_database(stack.mnt / "db", mode, committed)


class Postgres:
    """A PostgreSQL server, its data and its socket in *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.process: subprocess.Popen[bytes] | None = None

    def as_owner(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as its user."""
        return run(
            *AS_POSTGRES, POSTGRES / program, *arguments, cwd=self.directory, variables={"LC_ALL": "C"}
        )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = {"listen_addresses": "", "unix_socket_directories": self.directory, "max_connections": 10}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*AS_POSTGRES, POSTGRES / "postgres", "-D", self.data, *options],
                cwd=self.directory, stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        wait_until(self.is_ready, patience=PATIENCE)

    def is_ready(self) -> bool:
        """Tell whether the server answers; fail if it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
        command: list[str | Path] = [POSTGRES / "pg_isready", "-q", "-h", self.directory]
        return subprocess.run(command, timeout=10, check=False).returncode == 0

    def sql(self, statements: str) -> str:
        """Have *statements* done in one transaction; return what they answer."""
        options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", str(self.directory)]
        return self.as_owner("psql", *options, "-d", "postgres", "-c", statements).rstrip("\n")

    def kill(self) -> None:
        """Kill the server and all its processes at once."""
        assert self.process is not None
        pid = self.process.pid
        os.kill(pid, signal.SIGSTOP)  # lest it starts others
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        for each in (pid, *children):
            os.kill(each, signal.SIGKILL)
        self.process.wait(timeout=10)
        wait_until(lambda: not any(Path(f"/proc/{child}/fd/0").exists() for child in children))

    def stop(self) -> None:
        """End the server as at a shutdown."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=PATIENCE)


@pytest.mark.skipif(not (POSTGRES / "initdb").exists(), reason="needs PostgreSQL")
class TestPostgres:
    """A cluster made, loaded, killed and checked."""

    @pytest.fixture
    def tmp_path(self) -> Iterator[Path]:
        """A directory that other users can reach, unlike pytest's own."""
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o755)
            yield Path(name)

    @pytest.fixture
    def server(self, stack: Stack) -> Iterator[Postgres]:
        """A server that runs on the mount."""
        stack.upper.chmod(0o755)
        owner = pwd.getpwnam("postgres")
        server = Postgres(stack.mount() / "postgres")
        server.directory.mkdir()
        os.chown(server.directory, owner.pw_uid, owner.pw_gid)
        server.as_owner(
            "initdb", "-D", str(server.data), "--data-checksums", "--auth=trust", "--no-instructions"
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()

    def test_a_load_a_commit_and_a_crash(self, server: Postgres, stack: Stack) -> None:
        server.sql(
            "CREATE TABLE t (id int PRIMARY KEY, filler text); "
            "INSERT INTO t SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 20000) n; "
            "CREATE INDEX ON t (filler);"
        )
        stack.commit()
        server.sql("UPDATE t SET filler = 'changed' WHERE id % 10 = 0")
        for statement in ("VACUUM ANALYZE t", "CHECKPOINT"):
            server.sql(statement)
        for number in range(20):  # each is a transaction of its own, in the log but not in the tables' files
            server.sql(f"INSERT INTO t VALUES ({20001 + number}, 'late')")
        server.kill()
        server.start()
        self.check(server)
        server.stop()
        stack.remount()
        assert "Bad checksums:  0" in server.as_owner("pg_checksums", "--check", "-D", str(server.data))
        server.start()
        self.check(server)

    def check(self, server: Postgres) -> None:
        """Check that everything is there, in the tables and in the indexes."""
        assert server.sql("SELECT count(*), count(*) FILTER (WHERE filler = 'late') FROM t") == "20020|20"
        assert server.sql("SELECT count(*) FROM t WHERE filler = 'changed'") == "2000"
        whole = "SET enable_indexscan = off; SET enable_bitmapscan = off; "
        same = "SELECT md5(string_agg(id || filler, ',' ORDER BY id)) FROM t WHERE id BETWEEN 5000 AND 9000"
        assert server.sql(whole + same) == server.sql(same)
