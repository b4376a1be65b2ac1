"""What comes from elsewhere: files by HTTP, repositories by git; bounded in time and size."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from layerfs.archive.limits import Limits
from layerfs.errors import BadRequest, LayerfsError, NotFound, Unauthorized

if TYPE_CHECKING:
    from http.client import HTTPResponse

_CHUNK = 1 << 18
_SILENCE_SECONDS = 60
_LONGEST_SECONDS = 3600
_MOST_BYTES = Limits().size
_CHECKSUM = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")
_GIT_HTTP = re.compile(r"https?://[^?]*\.git(#.*)?", re.DOTALL)
_GIT_SSH = re.compile(r"git@[A-Za-z0-9_.-]+:.*", re.DOTALL)


_SECRETS = re.compile(r"(://)[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched: a file in a directory, or, without a name, the directory."""

    directory: Path
    name: bytes | None


def without_secrets(text: str) -> str:
    """Return *text* without the passwords and tokens of addresses in it, for people to read."""
    return _SECRETS.sub(r"\1", text)


def is_git(text: str) -> bool:
    """Tell whether *text* names a git repository, as docker sees it."""
    return (
        text.startswith(("git://", "ssh://", "github.com/"))
        or _GIT_HTTP.fullmatch(text) is not None
        or _GIT_SSH.fullmatch(text) is not None
    )


def is_http(text: str) -> bool:
    """Tell whether *text* is the address of a file."""
    return text.startswith(("http://", "https://")) and not is_git(text)


def is_elsewhere(text: str) -> bool:
    """Tell whether a source of ADD has to be fetched, and is no path: `github.com/x/y` may be one."""
    return is_http(text) or (is_git(text) and not text.startswith("github.com/"))


def fetch(
    text: str, place: Path, *, checksum: str | None, keep_git_dir: bool, check: Callable[[], None]
) -> Fetched:
    """Fetch *text*, an address or a repository, into the empty directory *place*.

    *checksum* is a digest (`sha256:...`) or, for a repository, the commit. Raises `LayerfsError`, and what
    *check* raises.
    """
    if is_git(text):
        from layerfs.build import git

        tree = git.fetch(text, place, checksum=checksum, keep_git_dir=keep_git_dir, check=check)
        return Fetched(tree, None)
    name = file_name(text)
    file = place / os.fsdecode(name)
    fetch_file(text, file, checksum=checksum, check=check)
    return Fetched(place, name)


def file_name(url: str) -> bytes:
    """Return what the file at *url* is called: the last name of its path."""
    base = posixpath.basename(unquote(urlsplit(url).path, errors="surrogateescape"))
    name = os.fsencode(base)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > 255:
        return b"__unnamed__"
    return name


def fetch_file(
    url: str, file: Path, *, checksum: str | None = None, check: Callable[[], None] = lambda: None
) -> str:
    """Write what is at *url* to *file*, which is new: mode 0600, with the time that the server says.

    Returns the type that the server says it has. Raises `LayerfsError`, and what *check* raises.
    """
    wanted = _parsed(checksum) if checksum is not None else None
    called = without_secrets(url)
    digest = hashlib.new(wanted[0]) if wanted is not None else None
    until = time.monotonic() + _LONGEST_SECONDS
    done = 0
    answer, kind, modified = _open(url)
    with answer, open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
        while piece := _read(answer, called):
            check()
            done += len(piece)
            if done > _MOST_BYTES:
                raise BadRequest(f"{called}: it has more than {_MOST_BYTES >> 30} GiB")
            if time.monotonic() > until:
                raise LayerfsError(f"{called}: it was not complete after {_LONGEST_SECONDS // 60} minutes")
            if digest is not None:
                digest.update(piece)
            out.write(piece)
    if wanted is not None and digest is not None and digest.hexdigest() != wanted[1]:
        raise BadRequest(f"{called} has the digest {wanted[0]}:{digest.hexdigest()}, not {checksum}")
    if modified is not None:
        os.utime(file, ns=(modified, modified))
    return kind


def _parsed(checksum: str) -> tuple[str, str]:
    found = _CHECKSUM.fullmatch(checksum)
    if found is None or len(found[2]) != hashlib.new(found[1]).digest_size * 2:
        raise BadRequest(f"invalid checksum {checksum[:100]!r}: give sha256: and 64 hexadecimal digits")
    return found[1], found[2]


def _open(url: str) -> tuple[HTTPResponse, str, int | None]:
    """Return what is at *url*, its type, and when it was modified (ns), if the server says so."""
    from email.utils import parsedate_to_datetime
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import (
        HTTPDefaultErrorHandler,
        HTTPErrorProcessor,
        HTTPHandler,
        HTTPRedirectHandler,
        HTTPSHandler,
        OpenerDirector,
        ProxyHandler,
        Request,
    )

    opener = OpenerDirector()  # without the handlers for file: and ftp:, which a server could redirect to
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPDefaultErrorHandler(),
        HTTPRedirectHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    called = without_secrets(url)
    try:
        request = Request(called, headers={"User-Agent": "layerfs", "Accept-Encoding": "identity"})
        if (user := _user(url)) is not None:  # not for who is redirected to
            request.add_unredirected_header("Authorization", f"Basic {b64encode(user).decode()}")
        answer = opener.open(request, timeout=_SILENCE_SECONDS)
    except HTTPError as error:
        with error:
            text = f"cannot fetch {called}: {error.code} {str(error.reason).partition(chr(10))[0]}"
        if error.code in (401, 403):
            raise Unauthorized(text) from None
        raise (NotFound if error.code in (404, 410) else LayerfsError)(text) from None
    except URLError as error:
        why = error.reason
        said = (why.strerror or str(why)) if isinstance(why, OSError) else str(why)
        raise LayerfsError(f"cannot fetch {called}: {said}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise LayerfsError(f"cannot fetch {called}: {str(error) or type(error).__name__}") from None
    if answer is None:
        raise BadRequest(f"cannot fetch {called}: it leads to an address that is not of the web")
    modified = None
    if said := answer.headers.get("Last-Modified"):
        try:
            modified = int(parsedate_to_datetime(said).timestamp()) * 1_000_000_000
        except (ValueError, OverflowError, OSError):
            modified = None
    return answer, answer.headers.get_content_type(), modified


def _user(url: str) -> bytes | None:
    """Return `USER:PASSWORD` of *url*, None where there is none."""
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return unquote(user, errors="surrogateescape").encode(errors="surrogateescape") if at else None


def _read(answer: HTTPResponse, called: str) -> bytes:
    from http.client import HTTPException, IncompleteRead

    try:
        piece = answer.read1(_CHUNK)  # what has come, so that neither *check* nor the clock waits for more
        if not piece and answer.length:  # http.client takes the end of a connection for that of the file
            raise IncompleteRead(b"")
    except IncompleteRead:
        raise LayerfsError(f"cannot fetch {called}: the connection ended too early") from None
    except (OSError, HTTPException) as error:
        raise LayerfsError(f"cannot fetch {called}: {str(error) or type(error).__name__}") from None
    return piece
