"""Running skopeo(1), which knows registries, credentials, mirrors and signatures: layerfs has no client."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from layerfs.distribution.remotes import Remote
from layerfs.errors import BadRequest, Forbidden, LayerfsError, NoSpace, NotFound, UsageError
from layerfs.store.scratch import Scratch

Watch = Callable[[int, str], None]
"""Called several times a second while skopeo runs, and once when it has ended.

It gets skopeo's pid and all that skopeo has logged so far. What it raises ends skopeo.
"""

_LOOK = 0.1
"""Seconds between two calls of a `Watch`."""
_MESSAGE = re.compile(r'level=(\w+) msg=("(?:[^"\\]|\\.)*")')
_KINDS: tuple[tuple[str, type[LayerfsError]], ...] = (
    ("no space left|quota exceeded", NoSpace),
    ("unauthorized|authentication required|denied|forbidden|policy", Forbidden),
    ("manifest unknown|name unknown|not found|does not exist|no such file|not known", NotFound),
    ("[Ii]nvalid (source|destination) name|invalid reference", BadRequest),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What people may say about an access; what they do not say, skopeo's configuration does."""

    platform: str | None = None
    """`OS/ARCHITECTURE[/VARIANT]`, to choose from an image of several platforms."""
    tls_verify: bool | None = None
    authfile: str | None = None
    creds: str | None = None
    """`USER[:PASSWORD]`."""
    cert_dir: str | None = None
    policy: str | None = None
    extra: Sequence[str] = ()
    """Further options of `skopeo copy`."""
    descriptors: Sequence[int] = ()
    """What skopeo inherits besides its standard streams, such as an `authfile` that has no name on disk."""

    def for_all(self) -> list[str]:
        """Return the options that come before skopeo's command. Raises `UsageError`."""
        words = ["--policy", self.policy] if self.policy else []
        if self.platform is not None:
            parts = self.platform.split("/")
            if len(parts) not in (2, 3) or not all(parts):
                raise UsageError(f"bad platform {self.platform!r}: use OS/ARCHITECTURE, such as linux/arm64")
            names = ("--override-os", "--override-arch", "--override-variant")
            for name, part in zip(names, parts, strict=False):
                words += [name, part]
        return words

    def for_access(self, prefix: str) -> list[str]:
        """Return the options of an access, their names beginning with *prefix* ("src-", "dest-" or none)."""
        words = [] if self.tls_verify is None else [f"--{prefix}tls-verify={str(self.tls_verify).lower()}"]
        for name, value in (("authfile", self.authfile), ("creds", self.creds), ("cert-dir", self.cert_dir)):
            words += [f"--{prefix}{name}", value] if value else []
        return words


def access(is_local: bool, authfile: int) -> Options:
    """Return the options for a client of the API, whose credentials are in the file *authfile*.

    A registry that *is_local* need not have TLS, as for dockerd; for others that is a matter of
    containers-registries.conf(5).
    """
    return Options(
        tls_verify=False if is_local else None,
        authfile=f"/proc/self/fd/{authfile}",
        descriptors=(authfile,),
    )


def check(doing: str) -> None:
    """Raise `NotFound`, which says that this stands in the way of *doing*, where there is no skopeo."""
    if shutil.which("skopeo") is None:
        raise NotFound(f"cannot {doing}: skopeo is not installed (Debian's package is called skopeo)")


def layout(scratch: Scratch, name: str) -> Remote:
    """Return the OCI layout in the directory *name* of *scratch*."""
    path = str(scratch.path / name)
    if ":" in path:  # which would end the path: but skopeo inherits the descriptor
        path = f"/proc/self/fd/{scratch.lock}/{name}"
    return Remote("oci", path)


def copy(
    source: Remote,
    target: Remote,
    options: Options,
    *,
    side: str,
    scratch: Scratch,
    doing: str,
    progress: bool,
    watch: Watch | None = None,
) -> None:
    """Copy one image; *side* ("src" or "dest") is the one that *options* are about.

    skopeo holds *scratch*, has its temporary files there, and dies with this process. With *progress* it
    shows on standard error how far it is; a *watch* has it log each step (`--debug`). Raises `LayerfsError`,
    which says what could not be done (*doing*: "pull debian:12"), and what *watch* raises.
    """
    words = ["--debug"] if watch is not None else []
    words += [*options.for_all(), "copy", *options.for_access(f"{side}-"), *options.extra]
    words += [] if progress else ["--quiet"]
    words += [str(source), str(target)]
    _run(words, options, scratch, doing, sys.stderr if progress else subprocess.DEVNULL, watch)


def inspect(
    source: Remote,
    options: Options,
    *words: str,
    scratch: Scratch,
    doing: str,
    watch: Watch | None = None,
) -> bytes:
    """Return what `skopeo inspect` says of an image, with more options *words*.

    Raises `LayerfsError`, and what *watch* raises.
    """
    words = (*options.for_all(), "inspect", "--no-tags", *options.for_access(""), *words, str(source))
    return _run(words, options, scratch, doing, subprocess.PIPE, watch)


def tags(
    source: Remote, options: Options, *, scratch: Scratch, doing: str, watch: Watch | None = None
) -> list[str]:
    """Return the tags of the repository *source* in a registry.

    Raises `LayerfsError`, and what *watch* raises.
    """
    words = (*options.for_all(), "list-tags", *options.for_access(""), str(source))
    try:
        found = json.loads(_run(words, options, scratch, doing, subprocess.PIPE, watch))["Tags"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(tag, str) for tag in found):
        raise LayerfsError(f"cannot {doing}: skopeo's answer about {source} names no tags")
    return found


def log_in(host: str, options: Options, *, scratch: Scratch) -> str | None:
    """Try the credentials of *options*, an authfile, on the registry *host*.

    Returns None if it takes them, else what skopeo has logged (`--debug`): its own message says no more than
    that it would ask for others. Raises `LayerfsError` where it could not try.
    """
    words = ["--debug", "login", *options.for_access(""), host]
    logged = ""

    def note(pid: int, said: str) -> None:
        nonlocal logged
        logged = said

    try:
        _run(words, options, scratch, f"log in to {host}", subprocess.DEVNULL, note)
    except LayerfsError:
        if not _MESSAGE.search(logged):
            raise
        return logged
    return None


def layers(source: Remote, options: Options, *, scratch: Scratch, doing: str) -> list[str]:
    """Return the digests of the blobs of an image's layers, the lowest first. Raises `LayerfsError`."""
    try:
        found = json.loads(inspect(source, options, scratch=scratch, doing=doing))["Layers"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise LayerfsError(f"cannot {doing}: skopeo's answer about {source} names no layers")
    return found


def _run(
    words: Sequence[str],
    options: Options,
    scratch: Scratch,
    doing: str,
    stdout: int | IO[Any],
    watch: Watch | None = None,
) -> bytes:
    # What it logs goes to memory: a pipe that nobody empties would stop it, and a full disk would lose it.
    with (
        os.fdopen(os.memfd_create("skopeo's log", os.MFD_CLOEXEC), "rb", buffering=0) as log,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", "skopeo", "--tmpdir", str(scratch.path), *words],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=log,
            pass_fds=[scratch.lock, *options.descriptors],
            env={**os.environ, "LC_ALL": "C"},
        ) as process,
    ):

        def said() -> str:
            return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")

        try:
            while True:
                try:
                    output = process.communicate(timeout=None if watch is None else _LOOK)[0]
                    break
                except subprocess.TimeoutExpired:
                    if watch is not None:
                        watch(process.pid, said())
        except BaseException:
            process.kill()
            raise
        text = said()
    if watch is not None:
        watch(process.pid, text)
    if process.returncode != 0:
        raise _explained(doing, text, process.returncode)
    for level, message in _MESSAGE.findall(text):
        if level == "warning":
            sys.stderr.write(f"layerfs: skopeo: {unquoted(message)}\n")
    return output or b""


def _explained(doing: str, text: str, status: int) -> LayerfsError:
    if status < 0:
        return LayerfsError(f"cannot {doing}: skopeo was killed ({signal.Signals(-status).name})")
    fatal = [unquoted(message) for level, message in _MESSAGE.findall(text) if level in ("fatal", "error")]
    lines = fatal or [line for line in text.splitlines() if line.strip()] or [f"skopeo failed ({status})"]
    why = lines[-1].strip()
    if "server gave HTTP response to HTTPS client" in why:
        why += "; if it is meant to be reached without TLS, give --tls-verify=false"
    kind = next((kind for words, kind in _KINDS if re.search(words, why)), LayerfsError)
    return kind(f"cannot {doing}: {why}")


def unquoted(message: str) -> str:
    """Return the text of a quoted message of skopeo's log, whose escapes are those of JSON, but for a few."""
    try:
        return str(json.loads(message))
    except ValueError:
        return message.strip('"')
