"""The program that imports images and removes them, and what is to be found of these after a power cut."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from layerfs.errors import LayerfsError
from layerfs.store import Store
from tests.system.promises import machine
from tests.system.promises.checker import Unmounted
from tests.system.promises.notes import Note, Notebook

_FILES = 6


def contents(number: int) -> dict[str, bytes]:
    """Return the files of the image that was imported under this *number*."""
    rng = random.Random(number)
    return {f"f{name}": rng.randbytes(rng.choice((10, 5000, 60_000))) for name in range(_FILES)}


class Importer:
    """Imports and removes images of the store, from a directory in *room*."""

    def __init__(self, room: Path, notes: Path, seed: int) -> None:
        self._source = room / "source"
        self._output = room / "importer"
        self._notes = Notebook(notes, "importer")
        self._random = random.Random(f"importer/{seed}")

    def run(self) -> None:
        """Go on until a command fails."""
        present: list[int] = []
        while True:
            number = self._random.getrandbits(40)
            shutil.rmtree(self._source, ignore_errors=True)
            self._source.mkdir()
            for name, content in contents(number).items():
                (self._source / name).write_bytes(content)
            if not self._layerfs("import", number, str(self._source)):
                return
            present.append(number)
            while present and self._random.random() < 0.6:
                gone = present.pop(self._random.randrange(len(present)))
                if not self._layerfs("rmi", gone):
                    return
            time.sleep(self._random.random() * 0.05)

    def _layerfs(self, command: str, number: int, *arguments: str) -> bool:
        self._notes.begins(command, {"number": number})
        if machine.layerfs([command, *arguments, reference(number)], self._output):
            self._notes.failed(OSError(5, self._output.read_text()))
            return False
        self._notes.worked()
        return True


def reference(number: int) -> str:
    """Return the name of the image with this *number*."""
    return f"imported:{number}"


class Imports:
    """The imports that the notes tell of."""

    def __init__(self) -> None:
        self._done: dict[int, bool] = {}
        """Whether each must be there: it was imported, and its removal has not begun."""

    def follow(self, note: Note) -> None:
        """Take in one note."""
        if note.call.name in ("import", "rmi"):
            imported = note.call.name == "import" and note.ended and not note.error
            self._done[note.call.arguments["number"]] = imported

    def broken(self, store: Store) -> Iterator[str]:
        """Yield what is wrong: an image is whole, or it may be missing and is."""
        for number, must in self._done.items():
            name = reference(number)
            try:
                image = store.resolve(name)
            except LayerfsError:
                if must:
                    yield f"{name} was imported, and is gone"
                continue
            try:
                with closing(Unmounted.of(store.layers_of(image))) as tree:
                    found = {file: tree.read(file) for file in tree.names("")}
            except (LayerfsError, OSError) as error:
                yield f"{name} cannot be read: {error}"
                continue
            expected = contents(number)
            for file in sorted(expected.keys() | found.keys()):
                if found.get(file) != expected.get(file):
                    yield f"{name} is there, but not as it was imported: {file}"
