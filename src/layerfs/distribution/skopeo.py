"""Running skopeo(1), which knows registries, credentials, mirrors and signatures: layerfs has no client."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from layerfs.distribution.remotes import Remote
from layerfs.errors import BadRequest, Forbidden, LayerfsError, NoSpace, NotFound, UsageError
from layerfs.store.scratch import Scratch

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
) -> None:
    """Copy one image; *side* ("src" or "dest") is the one that *options* are about.

    skopeo holds *scratch*, has its temporary files there, and dies with this process. With *progress* it
    shows on standard error how far it is. Raises `LayerfsError`, which says what could not be done
    (*doing*: "pull debian:12").
    """
    words = [*options.for_all(), "copy", *options.for_access(f"{side}-"), *options.extra]
    words += [] if progress else ["--quiet"]
    words += [str(source), str(target)]
    _run(words, scratch, doing, sys.stderr if progress else subprocess.DEVNULL)


def inspect(source: Remote, options: Options, *words: str, scratch: Scratch, doing: str) -> bytes:
    """Return what `skopeo inspect` says of an image, with more options *words*. Raises `LayerfsError`."""
    words = (*options.for_all(), "inspect", "--no-tags", *options.for_access(""), *words, str(source))
    return _run(words, scratch, doing, subprocess.PIPE)


def layers(source: Remote, options: Options, *, scratch: Scratch, doing: str) -> list[str]:
    """Return the digests of the blobs of an image's layers, the lowest first. Raises `LayerfsError`."""
    try:
        found = json.loads(inspect(source, options, scratch=scratch, doing=doing))["Layers"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise LayerfsError(f"cannot {doing}: skopeo's answer about {source} names no layers")
    return found


def _run(words: Sequence[str], scratch: Scratch, doing: str, stdout: int | IO[Any]) -> bytes:
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", "skopeo", "--tmpdir", str(scratch.path), *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        pass_fds=[scratch.lock],
        env={**os.environ, "LC_ALL": "C"},
    ) as process:
        try:
            output, said = process.communicate()
        except BaseException:
            process.kill()
            raise
    text = said.decode(errors="replace")
    if process.returncode != 0:
        raise _explained(doing, text, process.returncode)
    for level, message in _MESSAGE.findall(text):
        if level == "warning":
            sys.stderr.write(f"layerfs: skopeo: {_unquoted(message)}\n")
    return output or b""


def _explained(doing: str, text: str, status: int) -> LayerfsError:
    if status < 0:
        return LayerfsError(f"cannot {doing}: skopeo was killed ({signal.Signals(-status).name})")
    fatal = [_unquoted(message) for level, message in _MESSAGE.findall(text) if level in ("fatal", "error")]
    lines = fatal or [line for line in text.splitlines() if line.strip()] or [f"skopeo failed ({status})"]
    why = lines[-1].strip()
    if "server gave HTTP response to HTTPS client" in why:
        why += "; if it is meant to be reached without TLS, give --tls-verify=false"
    kind = next((kind for words, kind in _KINDS if re.search(words, why)), LayerfsError)
    return kind(f"cannot {doing}: {why}")


def _unquoted(message: str) -> str:
    """Return the text of a quoted message of skopeo's log, whose escapes are those of JSON, but for a few."""
    try:
        return str(json.loads(message))
    except ValueError:
        return message.strip('"')
