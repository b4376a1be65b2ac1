"""The records of a pax header: `LENGTH KEY=VALUE` and a newline each (POSIX.1-2017, pax)."""

from __future__ import annotations

from collections.abc import Iterable

from layerfs.archive.streams import Damaged

XATTR = b"SCHILY.xattr."
_SPARSE_PAIRS = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")


class Records(dict[bytes, bytes]):
    """Records by key; those of extended attributes apart, and those that may be repeated as well."""

    __slots__ = ("pairs", "xattrs")

    def __init__(self, before: Records | None = None) -> None:
        super().__init__(before or {})
        self.xattrs: dict[bytes, bytes] = dict(before.xattrs) if before is not None else {}
        self.pairs: list[bytes] = []
        """Values of `GNU.sparse.offset` and `GNU.sparse.numbytes`, which come again and again."""


def parse_records(data: bytes, before: Records) -> Records:
    """Return the records in *data*, over those of *before* (of global headers). Raises `Damaged`."""
    records = Records(before)
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 21)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise Damaged("a pax header has a record without a length")
        end = at + int(digits)
        record = data[space + 1 : end - 1]
        if end <= space + 1 or end > len(data) or data[end - 1 : end] != b"\n":
            raise Damaged("a pax header has a record of a wrong length")
        key, equals, value = record.partition(b"=")
        if not equals or not key or b"\0" in key:
            raise Damaged("a pax header has a record without a key, or with an odd one")
        if key.startswith(XATTR):
            records.xattrs[_decoded(key[len(XATTR) :])] = value
        elif key in _SPARSE_PAIRS:
            expected = _SPARSE_PAIRS[len(records.pairs) % 2]
            if key != expected:
                raise Damaged("a sparse file has a map in disorder")
            records.pairs.append(value)
        else:
            records[key] = value
        at = end
    return records


def format_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return *records* as the content of a pax header."""
    return b"".join(_format(key, value) for key, value in records)


def xattr_key(name: bytes) -> bytes:
    """Return the key of the record for the extended attribute *name*.

    Where a name has a `=` in it, it and `%` are written as GNU tar writes them, `%3D` and `%25`.
    """
    if b"=" in name or b"%3D" in name or b"%25" in name:
        name = name.replace(b"%", b"%25").replace(b"=", b"%3D")
    return XATTR + name


def _decoded(name: bytes) -> bytes:
    if b"%" not in name:
        return name
    return b"%".join(part.replace(b"%3D", b"=") for part in name.split(b"%25"))


def _format(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))  # the length counts its own digits
    return b"%d %s=%s\n" % (length, key, value)
