"""An OCI archive that comes as a stream, written out as a layout directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from layerfs.archive.streams import Feed
from layerfs.archive.tar import Member, Reader
from layerfs.errors import BadRequest, from_os_error
from layerfs.oci import media
from layerfs.oci.outputs import DirectoryOutput
from layerfs.oci.saving import write_index

_BLOBS = b"blobs/sha256/"
_MOST = 4 << 20
"""Bytes of an index."""


def lay_out(pieces: Iterator[bytes], path: Path) -> None:
    """Write the archive *pieces* as a layout at *path*, which may have images under other names already.

    The index comes last: until then the layout is as it was, but for blobs that it does not name. Raises
    `LayerfsError`.
    """
    try:
        out = DirectoryOutput(path)
        reader = Reader(Feed(pieces))
        index: bytes | None = None
        for member in reader:
            if member.kind == "file" and member.name.startswith(_BLOBS):
                _blob(out, member, reader)
            elif member.name == b"index.json" and member.size <= _MOST:
                index = b"".join(map(bytes, iter(lambda: reader.some(_MOST), b"")))
        if index is None:
            raise BadRequest("the archive is no image: it has no index.json")
        entries = media.sequence(media.parse(index, "index.json").get("manifests"), "the index")
        write_index(out, [dict(entry) for entry in entries])
    except OSError as error:
        raise from_os_error(error, "save") from None


def _blob(out: DirectoryOutput, member: Member, reader: Reader) -> None:
    digest = hashlib.sha256()
    with out.blob() as (sink, name):
        while data := reader.some(1 << 20):
            digest.update(data)
            sink.write(bytes(data))
        if digest.hexdigest() != member.name.removeprefix(_BLOBS).decode("ascii", "replace"):
            raise BadRequest("the archive is damaged: a blob in it is not what its name says")
        name(f"sha256:{digest.hexdigest()}")
