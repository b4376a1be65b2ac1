"""Git repositories: one commit's files, by the git command, which is told to ask, run and believe nothing."""

from __future__ import annotations

import os
import posixpath
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from layerfs.archive.limits import Limits
from layerfs.build.fetching import without_secrets
from layerfs.errors import BadRequest, LayerfsError, NotFound
from layerfs.union.trees import remove_trees

_LONGEST_SECONDS = 1800
_LOOK_SECONDS = 0.05
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.askPass=true",
    "credential.helper=",
    "protocol.allow=never",
    "protocol.http.allow=always",
    "protocol.https.allow=always",
    "protocol.git.allow=always",
    "protocol.ssh.allow=always",
    "transfer.credentialsInUrl=allow",
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=60",
    "fetch.recurseSubmodules=false",
    "init.defaultBranch=main",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
)
"""Nobody else's code is run, no password is asked for, and a submodule cannot be a path of this machine."""


class Reference(NamedTuple):
    """A repository, and what is wanted of it."""

    remote: str
    ref: str
    """A branch, tag or commit; empty for what the repository says."""
    subdirectory: str


def parsed(text: str) -> Reference:
    """Return what `URL#REF:SUBDIRECTORY` means. Raises `BadRequest`."""
    remote, _, fragment = text.partition("#")
    ref, _, subdirectory = fragment.partition(":")
    if remote.startswith("github.com/"):
        remote = "https://" + remote
    if ref.startswith("-") or any(ord(letter) <= 32 for letter in ref) or not remote.isprintable():
        called = without_secrets(text[:200])
        raise BadRequest(f"invalid repository {called!r}: give URL#REF:SUBDIRECTORY")
    return Reference(remote, ref, subdirectory)


def fetch(
    text: str,
    place: Path,
    *,
    checksum: str | None = None,
    keep_git_dir: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write the files of a commit of the repository *text* below *place*; return their directory.

    *checksum* is the commit that it must be, or a beginning of it. Without *keep_git_dir* there is no `.git`.
    Submodules come along. Raises `LayerfsError`, and what *check* raises.
    """
    wanted = parsed(text)
    tree = place / "repository"
    git = _Git(tree, place, text, check)
    git("init", "--quiet", str(tree), inside=False)
    git("remote", "add", "origin", "--", wanted.remote)
    ref = wanted.ref or "HEAD"
    found = "FETCH_HEAD"
    try:
        git("fetch", "--quiet", "--depth=1", "--no-tags", "origin", "--", ref)
    except LayerfsError:
        if _COMMIT.fullmatch(ref) is None:
            raise
        git("fetch", "--quiet", "--tags", "origin", "--", "+refs/heads/*:refs/remotes/origin/*")
        found = ref  # a server need not give single commits
    git("checkout", "--quiet", "--force", "--detach", found)
    commit = git("rev-parse", "HEAD").strip()
    if checksum is not None and not (len(checksum) >= 7 and commit.startswith(checksum)):
        raise BadRequest(f"{without_secrets(text)} is the commit {commit}, not {checksum}")
    if (tree / ".gitmodules").is_file() and not (tree / ".gitmodules").is_symlink():
        git("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
    if not keep_git_dir:
        remove_trees(tree / ".git")
    return _inside(tree, wanted.subdirectory, text)


def _inside(tree: Path, subdirectory: str, text: str) -> Path:
    """Return *subdirectory* of *tree*. Raises `NotFound`: also for one that a link leads to, or `..`."""
    path = tree
    for part in posixpath.normpath("/" + subdirectory).split("/"):
        path = path / part if part else path
        if path.is_symlink() or not path.is_dir():
            raise NotFound(f"{without_secrets(text)}: the repository has no directory {subdirectory}")
    return path


class _Git:
    """Runs git in one repository, with nothing of this machine's configuration, for a bounded time."""

    def __init__(self, tree: Path, home: Path, called: str, check: Callable[[], None]) -> None:
        self._tree = tree
        self._called = without_secrets(called)
        self._check = check
        self._until = time.monotonic() + _LONGEST_SECONDS
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR")
            or name.lower().endswith("_proxy")
        }
        self._environment = kept | {
            "HOME": str(home),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "SSH_ASKPASS": "true",
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=30",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_CONFIG_COUNT": str(len(_CONFIG)),
        }
        for number, setting in enumerate(_CONFIG):
            key, _, value = setting.partition("=")
            self._environment[f"GIT_CONFIG_KEY_{number}"] = key
            self._environment[f"GIT_CONFIG_VALUE_{number}"] = value

    def __call__(self, *arguments: str, inside: bool = True) -> str:
        """Run `git ARGUMENTS`; return what it prints. Raises `LayerfsError`, and what the check raises."""
        command = ["git", *(("-C", str(self._tree)) if inside else ()), *arguments]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                umask=0o022,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise LayerfsError("git is not installed: it is needed for repositories") from None
        with process:
            try:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (Limits().size, Limits().size))
                output, errors = self._wait(process)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it started, too
                raise
        if process.returncode != 0:
            raise self._failed(errors.decode(errors="replace"))
        return output.decode(errors="replace")

    def _wait(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        while True:
            self._check()
            if time.monotonic() > self._until:
                raise LayerfsError(
                    f"cannot fetch {self._called}: it was not complete after {_LONGEST_SECONDS // 60} minutes"
                )
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=_LOOK_SECONDS)

    def _failed(self, errors: str) -> LayerfsError:
        lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["git failed"]
        line = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1])
        line = without_secrets(line.removeprefix("fatal: ").removeprefix("error: "))[:300]
        missing = "not found" in line or "couldn't find remote ref" in line
        return (NotFound if missing else LayerfsError)(f"cannot fetch {self._called}: {line}")
