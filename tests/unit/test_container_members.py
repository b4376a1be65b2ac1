"""How the members of an object that a client sent are found: as by the decoder of Go, which clients know."""

from __future__ import annotations

from layerfs.container.members import Members


def test_the_case_of_a_name_does_not_matter_unless_both_are_there() -> None:
    assert Members({"detachKeys": "ctrl-p"}).text("DetachKeys") == "ctrl-p"
    assert Members({"tty": False, "Tty": True}).flag("Tty") is True
    assert Members({"hostconfig": {"binds": ["/a:/b"]}}).member("HostConfig").texts("Binds") == ["/a:/b"]  # type: ignore[union-attr]
    assert Members({"Ttyx": True}).flag("Tty") is False
