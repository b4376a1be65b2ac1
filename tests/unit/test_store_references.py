"""Names of images, as Docker reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import BadRequest
from layerfs.store.references import id_prefix, normalize, repository


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("debian", "debian:latest"),
        ("debian:12", "debian:12"),
        ("docker.io/library/debian:12", "debian:12"),
        ("index.docker.io/me/tool", "me/tool:latest"),
        ("registry:5000/a/b", "registry:5000/a/b:latest"),
        ("registry.example.com:5000/a/b:tag_1.2-x", "registry.example.com:5000/a/b:tag_1.2-x"),
        ("localhost/x", "localhost/x:latest"),
        ("[2001:db8::1]:5000/x:1", "[2001:db8::1]:5000/x:1"),
        ("a__b/c--d.e:Tag", "a__b/c--d.e:Tag"),
        ("registry:5000", "registry:5000"),
        ("Host/x", "Host/x:latest"),
    ],
)
def test_good(given_name: str, name: str) -> None:
    assert normalize(given_name) == name
    assert normalize(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        ":12",
        "Debian",
        "a b",
        "a:b c",
        "a:",
        "a:b:c",
        "a//b",
        "/a",
        "a/",
        "../x",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a:" + "x" * 129,
        "a:.x",
        "x" * 256,
        "ä",
        "a\n",
        "a:b\n",
        "a@sha256:" + "0" * 64,
        "f" * 64,
        "host:port/x",
        "-host.example/x",
    ],
)
def test_bad(name: str) -> None:
    with pytest.raises(BadRequest, match=r"^invalid reference format: "):
        normalize(name)


@given(st.text(max_size=40))
def test_anything_is_refused_or_stable(text: str) -> None:
    refusal = ""
    try:
        name = normalize(text)
    except BadRequest as error:
        name, refusal = "stand:in", str(error)
    assert "\n" not in refusal
    assert normalize(name) == name
    assert repository(name) + ":" in name


@pytest.mark.parametrize(
    ("reference", "digits"),
    [("a", "a"), ("sha256:0f", "0f"), ("0f" * 32, "0f" * 32), ("xyz", None), ("ABC", None), ("0" * 65, None)],
)
def test_id_prefix(reference: str, digits: str | None) -> None:
    assert id_prefix(reference) == digits
