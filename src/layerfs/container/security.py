"""What `--security-opt` says: seccomp, AppArmor, labels, no-new-privileges (moby's `parseSecurityOpt`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerfs.container import seccomp
from layerfs.errors import BadRequest

_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
_SELINUX = Path("/sys/fs/selinux/enforce")
_TRUTH = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
"""As Go's strconv.ParseBool, in small letters."""


@dataclass(frozen=True, slots=True)
class Security:
    """What the options of a container come to."""

    no_new_privileges: bool = False
    seccomp: str = ""
    """A profile as JSON, "unconfined", or nothing for the default."""
    apparmor: str = ""
    writable_cgroups: bool | None = None

    def filter(self, capabilities: Collection[str], *, privileged: bool) -> dict[str, Any] | None:
        """Return the `linux.seccomp` of a process that may have *capabilities*; raises `LayerfsError`."""
        if self.seccomp == "unconfined" or (privileged and not self.seccomp):
            return None
        if self.seccomp in ("", "builtin"):
            return seccomp.default_filter(capabilities)
        return seccomp.given_filter(self.seccomp, capabilities)

    def apparmor_profile(self) -> str:
        """Return the `process.apparmorProfile`, an empty one where there is no AppArmor, as dockerd does."""
        try:
            enabled = _APPARMOR.read_text().startswith("Y")
        except OSError:
            enabled = False
        return self.apparmor if enabled else ""


def parse(options: Iterable[str]) -> Security:
    """Return what *options* come to; raises `BadRequest`."""
    found: dict[str, Any] = {}
    for option in options:
        if option in ("no-new-privileges", "writable-cgroups"):
            found[option.replace("-", "_")] = True
            continue
        if option == "disable":  # of old: label=disable
            continue
        separator = "=" if "=" in option else ":"
        name, given, value = option.partition(separator)
        if not given:
            raise BadRequest(f'invalid --security-opt 1: "{option[:80]}"')
        if name in ("seccomp", "apparmor"):
            found[name] = value
        elif name in ("no-new-privileges", "writable-cgroups"):
            if value.lower() not in _TRUTH:
                raise BadRequest(f'invalid --security-opt 2: "{option[:80]}"')
            found[name.replace("-", "_")] = _TRUTH[value.lower()]
        elif name == "label":
            if value != "disable" and _SELINUX.exists():
                raise BadRequest("labels of SELinux are not supported: use --security-opt label=disable")
        else:
            raise BadRequest(f'invalid --security-opt 2: "{option[:80]}"')
    security = Security(**found)
    if security.seccomp not in ("", "builtin", "unconfined"):
        seccomp.given_filter(security.seccomp, ())  # raises what is wrong with it
    return security
