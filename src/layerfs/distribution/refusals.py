"""What registries refuse, in the words and with the kinds of error of dockerd."""

from __future__ import annotations

import re

from layerfs.distribution.named import Named
from layerfs.errors import Forbidden, LayerfsError, NoSpace, NotFound, Unauthorized

_LEADING = re.compile(
    r'^(?:Error parsing image name "[^"]*"|initializing (?:source|destination) \S+'
    r"|Error listing repository tags): "
)
_HINT = re.compile(r"; if it is meant to be reached without TLS, give --tls-verify=false$")
_WITHOUT_TLS = "; if it is meant to be reached without TLS, say so in /etc/containers/registries.conf"


def of_pull(error: LayerfsError, named: Named, *, anonymous: bool) -> LayerfsError:
    """Return the error of a pull of *named*, whatever skopeo has called it.

    Who is *anonymous* is refused like somebody who asks for what does not exist: of "unauthorized" Docker's
    command line makes a question for a password, which no script answers.
    """
    why = _reason(error)
    if why is None:
        return error
    detail = re.sub(r"^(?:reading manifest|Error reading manifest) \S+ in \S+: ", "", why)
    if "manifest unknown" in why:
        return NotFound(f"manifest for {named} not found: {detail}")
    if "name unknown" in why or "name invalid" in why:
        return NotFound(f"repository {named.repository} not found: {detail}")
    refused = next((word for word in ("denied", "unauthorized") if word in why), None)
    if refused == "denied" or (refused and anonymous):
        return NotFound(
            f"pull access denied for {named.repository}, repository does not exist or may require "
            f"'docker login': {_from(detail, refused)}"
        )
    return _common(error, why, named)


def of_push(error: LayerfsError, named: Named) -> LayerfsError:
    """Return the error of a push of *named*, whatever skopeo has called it."""
    why = _reason(error)
    if why is None:
        return error
    if "denied" in why:
        return Forbidden(_from(why, "denied"))
    return _common(error, why, named)


def _reason(error: LayerfsError) -> str | None:
    """Return what skopeo has said, None where the error is our own."""
    found = re.match(r"cannot (?:pull|push|inspect) \S+: (.*)", str(error), re.DOTALL)
    if found is None or found[1].startswith(("skopeo ", "it ")):
        return None
    return _LEADING.sub("", found[1])


def _common(error: LayerfsError, why: str, named: Named) -> LayerfsError:
    if "unauthorized" in why or "authentication required" in why:
        what = _from(why, "unauthorized")
        return Unauthorized(f"{what}: log in first, with 'docker login {named.host}'")
    why = re.sub(r"^pinging container registry \S+: ", "", why)
    kind = type(error) if isinstance(error, NoSpace) else LayerfsError
    return kind(_HINT.sub(_WITHOUT_TLS, why))


def _from(text: str, word: str) -> str:
    """Return *text* from *word* on, on one line."""
    at = max(text.find(word), 0)
    return " ".join(text[at:].split())
