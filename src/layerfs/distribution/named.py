"""Images in registries as Docker's clients name them: `debian:12`, `host:5000/a/b@sha256:...`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from layerfs.distribution.remotes import Remote
from layerfs.errors import BadRequest
from layerfs.store.references import normalize, repository

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")


@dataclass(frozen=True, slots=True)
class Named:
    """A repository in a registry and, by tag or by digest, an image in it."""

    repository: str
    """Without what Docker leaves out: `debian` is `docker.io/library/debian`."""
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, name: str, tag: str = "") -> Named:
        """Return what *name* means, whose *tag*, which may be a digest, may stand apart from it.

        Without a tag it is the repository. Raises `BadRequest`.
        """
        name = name.removesuffix(":")  # as clients send a repository whose tags are all wanted
        name, at, digest = name.partition("@")
        if _DIGEST.fullmatch(tag):
            at, digest, tag = "@", tag, ""
        if at and not _DIGEST.fullmatch(digest):
            raise BadRequest(f"invalid reference format: {digest[:100]!r} is no digest")
        if tag:
            bare = name.rpartition("/")[2].partition(":")[0]
            name = f"{name.rpartition('/')[0]}/{bare}" if "/" in name else bare
        has_tag = bool(tag) or ":" in name.rpartition("/")[2]
        reference = normalize(f"{name}:{tag}" if tag else name)
        return cls(
            repository(reference),
            reference.rpartition(":")[2] if has_tag and not at else None,
            digest or None,
        )

    def __str__(self) -> str:
        """Return the whole name, as Docker shows it."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        return f"{self.repository}:{self.tag}" if self.tag else self.repository

    @property
    def host(self) -> str:
        """The registry."""
        return self.remote().registry() or "docker.io"

    @property
    def path(self) -> str:
        """The repository without its registry: `library/debian`."""
        if self.host == "docker.io":
            return self.repository if "/" in self.repository else f"library/{self.repository}"
        return self.repository.removeprefix(f"{self.host}/")

    @property
    def full_repository(self) -> str:
        """The repository with its registry: `docker.io/library/debian`."""
        return f"{self.host}/{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine's loopback, where Docker does without TLS."""
        return is_loopback(self.host)

    def remote(self) -> Remote:
        """Return it as skopeo takes it."""
        return Remote("docker", f"//{self}")

    def at(self, digest: str) -> Named:
        """Return the image with this digest in the same repository."""
        return replace(self, tag=None, digest=digest)

    def tagged(self, tag: str) -> Named:
        """Return the image with this tag in the same repository."""
        return replace(self, tag=tag, digest=None)


def is_loopback(host: str) -> bool:
    """Return whether *host*, perhaps with a port, is this machine."""
    return _LOOPBACK.fullmatch(host) is not None
