"""The database's journal: what a COMMIT does with it, and what a sync does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from layerfs.errors import Conflict, LayerfsError, StoreBusy
from layerfs.store import Store
from layerfs.store.database import Database
from layerfs.store.journal import Hold, Journal
from layerfs.store.model import Image


def header(store: Store) -> bytes:
    """Return the journal's header: SQLite writes it, and syncs it, when it restarts the journal."""
    with (store.root / "layerfs.db-wal").open("rb") as journal:
        return journal.read(32)


def fold_in(store: Store) -> None:
    """Write all that is in the journal into the database, so that the next COMMIT restarts it."""
    with Store(store.root) as other:
        other.database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def test_a_commit_restarts_a_journal_that_was_folded_in(store: Store, base: Image) -> None:
    fold_in(store)
    before = header(store)
    store.tag(base.id, "x")
    assert header(store) != before


@pytest.mark.parametrize("folded", [False, True])
def test_no_commit_restarts_a_journal_that_is_held(store: Store, base: Image, folded: bool) -> None:
    hold = Hold(store.root)
    for _ in range(2):  # the second time by the same connections
        if folded:
            fold_in(store)
        hold.take()
        before = header(store)
        for number in range(20):
            store.tag(base.id, f"x:{number}")
            fold_in(store)
        assert header(store) == before
        hold.let_go()
        fold_in(store)
        store.tag(base.id, "x:last")
        assert header(store) != before
    hold.close()


def test_a_hold_waits_until_it_was_let_go(store: Store, base: Image) -> None:
    hold = Hold(store.root)
    hold.take()
    second = threading.Thread(target=hold.take)
    second.start()
    second.join(0.05)
    assert second.is_alive()
    hold.let_go()
    second.join(10)
    assert not second.is_alive()
    hold.let_go()
    hold.close()


def test_a_hold_does_not_change_what_others_wrote(store: Store, base: Image) -> None:
    version = store.database.number("PRAGMA user_version")
    with Store(store.root) as other:
        hold = Hold(store.root)
        hold.take()
        other.tag(base.id, "x")
        hold.let_go()
        hold.close()
        hold.close()
    assert store.resolve("x").id == base.id
    assert store.database.number("PRAGMA user_version") == version


def test_a_hold_that_cannot_be_had_leaves_nothing_behind(root: Path) -> None:
    hold = Hold(root)
    for _ in range(2):
        with pytest.raises(LayerfsError):
            hold.take()
    hold.close()


def test_a_hold_of_a_store_that_newer_code_has_changed_since_is_refused(store: Store, base: Image) -> None:
    """What is held is held for a commit, by the daemon of a mount that was there before an upgrade."""
    hold = Hold(store.root)
    hold.open()
    known = store.database.number("PRAGMA user_version")
    store.database.execute(f"PRAGMA user_version = {known + 1}")
    hold.take()  # it has only been added to
    hold.let_go()
    store.database.execute("UPDATE compatible SET version = ?", (known + 1,))
    for _ in range(2):
        with pytest.raises(Conflict, match="upgrade layerfs"):
            hold.take()
    hold.close()


def test_who_must_not_wait_is_told_at_once(store: Store, base: Image) -> None:
    with Store(store.root, wait=False) as impatient:
        with store.database.transaction():
            store.database.execute("UPDATE images SET comment = 'x'")
            with pytest.raises(StoreBusy):
                impatient.tag(base.id, "x")
        impatient.tag(base.id, "x")


def test_folding_in_reports_who_stands_in_its_way(
    store: Store, base: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerfs.store.database.WAIT", 0.1)
    journal = Journal(store.root)
    with Store(store.root) as reader:
        reader.database.execute("BEGIN")
        reader.images()
        store.tag(base.id, "x")
        impatient = Database(store.root)
        with pytest.raises(StoreBusy, match="cannot be written to its disk while others use it"):
            impatient.fold_in()
        journal.sync()  # nobody stands in the way of that
    impatient.fold_in()
    impatient.close()
    journal.close()
