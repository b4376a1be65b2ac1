"""The options that say how a registry is reached, and what is sent of them: files go as what is in them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from layerfs.errors import UsageError, from_os_error


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options that say how the other side is reached."""
    for option in (
        click.option(
            "--skopeo", "extra", metavar="OPTION", multiple=True, help="Give 'skopeo copy' one more option."
        ),
        click.option("--policy", metavar="FILE", help="Trust as this policy says, instead of policy.json."),
        click.option("--cert-dir", metavar="DIR", help="Use the certificates and keys in DIR."),
        click.option("--creds", metavar="USER[:PASSWORD]", help="Log in as this user."),
        click.option("--authfile", metavar="FILE", help="Log in with what 'skopeo login' has written here."),
        click.option(
            "--tls-verify",
            metavar="BOOLEAN",
            type=bool,
            help="Insist on TLS with a valid certificate: true (the default) or false.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
    ):
        command = option(command)
    return command


def access_body(
    *,
    host: str | None = None,
    tls_verify: bool | None = None,
    authfile: str | None = None,
    creds: str | None = None,
    cert_dir: str | None = None,
    policy: str | None = None,
    extra: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the members of a request that say what the options do. Raises `LayerfsError`.

    *host* is the registry, for which a program may have credentials, where no options name any.
    """
    auth = _read(authfile, "the authfile") if authfile else None
    if host is not None and auth is None and creds is None:
        auth = _kept_auth(host)
    body: dict[str, Any] = {
        "TlsVerify": tls_verify,
        "Creds": creds,
        "Auth": auth,
        "DefaultAuth": default_auth(),
        "Policy": _read(policy, "the policy") if policy else None,
        "Certificates": _certificates(Path(cert_dir)) if cert_dir else None,
        "Skopeo": list(extra),
    }
    return {name: value for name, value in body.items() if value not in (None, [])}


def default_auth() -> str | None:
    """Return the credentials that skopeo would find for this user (containers-auth.json(5)), None for none.

    An engine finds those of its own user, which are not for its clients.
    """
    found: dict[str, Any] = {}
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.geteuid()}"
    candidates = [Path(runtime, "containers/auth.json"), Path(runtime, "auth.json")]
    if home := os.environ.get("HOME"):
        candidates += [Path(home, ".config/containers/auth.json"), Path(home, ".docker/config.json")]
    if given := os.environ.get("REGISTRY_AUTH_FILE"):
        candidates = [Path(given)]
    for path in candidates:
        try:
            fields = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        for member in ("auths", "credHelpers"):
            entries = fields.get(member) if isinstance(fields, dict) else None
            if isinstance(entries, dict):
                found[member] = {**entries, **found.get(member, {})}
    return json.dumps(found) if found else None


def _kept_auth(host: str) -> str | None:
    """Return an authfile with what a program of docker's clients has for *host*, None where none has."""
    from layerfs.cli import credhelpers

    kept = credhelpers.of_host(host)
    if kept is None:
        return None
    entry = {}
    if token := kept.get("identitytoken"):
        entry["identitytoken"] = token
    name = f"{kept.get('username', '<token>')}:{kept.get('password', '')}"
    entry["auth"] = base64.b64encode(name.encode()).decode()
    return json.dumps({"auths": {host: entry}})


def _read(path: str, what: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise from_os_error(error, f"read {what}") from None
    except ValueError:
        raise UsageError(f"{path} is no text") from None


def _certificates(directory: Path) -> dict[str, str]:
    try:
        return {
            path.name: base64.b64encode(path.read_bytes()).decode()
            for path in sorted(directory.iterdir())
            if path.suffix in (".crt", ".cert", ".key")
        }
    except OSError as error:
        raise from_os_error(error, "read the certificates") from None
