"""What the tests of builds share: an image to begin with, contexts, and a look at what is left."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.conftest import PATIENCE, Layerfs, wait_until
from tests.system.apirequests import Api, engine
from tests.system.containers import IMAGE, Containers, containers

HEAD = f"FROM {IMAGE}\n"


class Builds:
    """Builds in a store that has an image with a shell."""

    def __init__(self, there: Containers) -> None:
        self.containers = there
        self.layerfs = there.layerfs
        self._contexts = 0

    def context(self, dockerfile: str | None, files: Mapping[str, str | bytes] | None = None) -> Path:
        """Make a context with a Dockerfile, if any, and *files*; return its directory."""
        self._contexts += 1
        directory = self.layerfs.directory / f"context-{self._contexts}"
        directory.mkdir()
        if dockerfile is not None:
            (directory / "Dockerfile").write_text(dockerfile)
        for name, content in (files or {}).items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return directory

    def run(
        self,
        dockerfile: str,
        *options: str,
        files: Mapping[str, str | bytes] | None = None,
        network: str = "none",
        env: Mapping[str, str] | None = None,
    ) -> CompletedProcess[str]:
        """Run `layerfs build OPTIONS CONTEXT` to its end, whatever that is."""
        context = self.context(dockerfile, files)
        return self.command("build", "--network", network, *options, str(context), env=env)

    def command(
        self, *words: str, env: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> CompletedProcess[str]:
        """Run `layerfs WORDS`."""
        return subprocess.run(
            [*self.layerfs.words, *words],
            env={**self.layerfs.environment, **(env or {})},
            input=stdin.decode(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def ok(self, dockerfile: str, *options: str, **more: Any) -> Built:
        """Build, which must work; nothing of it may be left outside the store."""
        done = self.run(dockerfile, *options, **more)
        assert done.returncode == 0, done.stderr
        left = self.left()
        assert left == [], (left, done.stderr)
        return Built(self, done)

    def fails(self, dockerfile: str, *options: str, **more: Any) -> str:
        """Build, which must fail with one line at its end; return that line. Nothing may be left."""
        done = self.run(dockerfile, *options, **more)
        assert done.returncode == 1, done.stderr
        left = self.left()
        assert left == [], (left, done.stderr)
        last = done.stderr.splitlines()[-1]
        assert last.startswith("layerfs: "), done.stderr
        assert "Traceback" not in done.stderr
        return last.removeprefix("layerfs: ")

    def left(self) -> list[str]:
        """Return what builds have left: directories, mounts, namespaces, containers."""
        run = self.layerfs.run
        places = ("builds", "netns", "networks", "runtime/runc")
        found = [str(path) for name in places for path in _entries(run / name)]
        mounts = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
        found += [line for line in mounts if f"{run}/builds" in line]
        found += [name for name in self.containers.names() if name.startswith("build-")]
        return found

    def inspect(self, image: str) -> dict[str, Any]:
        """Return what `layerfs image inspect` says of an image."""
        found: dict[str, Any] = json.loads(self.layerfs.ok("image", "inspect", image))[0]
        return found

    def config(self, image: str) -> dict[str, Any]:
        """Return the configuration of an image."""
        found: dict[str, Any] = self.inspect(image)["Config"]
        return found

    def history(self, image: str) -> list[str]:
        """Return the history of an image, oldest first."""
        lines = self.layerfs.ok("history", "--no-trunc", "--format", "json", image).splitlines()
        return [json.loads(line)["CreatedBy"] for line in reversed(lines)]

    def output(self, image: str, *words: str) -> str:
        """Run *words* in a container of *image*; return what they write."""
        done = self.command("run", "--rm", "--network", "none", image, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.exists() else []


class Built:
    """A build that has worked."""

    def __init__(self, builds: Builds, done: CompletedProcess[str]) -> None:
        self._builds = builds
        self.log = done.stderr
        self.stdout = done.stdout
        found = re.search(r"^image sha256:([0-9a-f]{64})$", done.stderr, re.M) or re.search(
            r"^sha256:([0-9a-f]{64})$", done.stdout, re.M
        )
        assert found, done
        self.image = found[1]

    @property
    def cached(self) -> list[str]:
        """The steps that came from the cache, as they are shown: `[2/3] RUN true`."""
        titles = dict(re.findall(r"^#(\d+) (\[.*)$", self.log, re.M))
        return [titles[number] for number in re.findall(r"^#(\d+) CACHED$", self.log, re.M)]

    def run(self, *words: str) -> str:
        """Run *words* in a container of the image; return what they write."""
        return self._builds.output(self.image, *words)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the image."""
        return self._builds.config(self.image)

    @property
    def history(self) -> list[str]:
        """The history of the image, oldest first, without what came with the image below."""
        return self._builds.history(self.image)[1:]


@contextmanager
def builds(directory: Path, *, served: bool = True) -> Iterator[tuple[Builds, Api | None]]:
    """Yield builds in a new store below *directory*, by an engine if that is wanted."""
    with containers(directory) as there:
        api = engine(there.layerfs) if served else None
        yield Builds(there), api
        wait_until(lambda: not _entries(there.layerfs.run / "builds"))


__all__ = ["HEAD", "Builds", "Built", "Layerfs", "builds"]
