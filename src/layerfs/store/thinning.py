"""Thinning the past of a mount out: which of its checkpoints stay, and how the others go.

A checkpoint stays if any rule wants it, or anybody needs it (see `squash`). One that goes is squashed into
the next one above it that stays; where it is the top of what was given up by going back, it is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layerfs.errors import BadRequest, Conflict
from layerfs.store import layers, squash, stacks
from layerfs.store.database import Database

_DAY = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class Rules:
    """Which checkpoints are wanted; at least one rule must be given."""

    every: int | None = None
    """The newest of each such span of time, in nanoseconds."""
    last: int | None = None
    """The newest ones, so many."""
    daily: int | None = None
    """The newest of each day (UTC), for the last so many days that have any."""

    def wanted(self, times: Sequence[int]) -> set[int]:
        """Return which of *times*, newest first, are wanted, by their places in it."""
        found = set(range(min(self.last or 0, len(times))))
        if self.every:
            found |= set(_newest_of_each(times, self.every).values())
        if self.daily:
            found |= set(list(_newest_of_each(times, _DAY).values())[: self.daily])
        return found


def _newest_of_each(times: Sequence[int], span: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for place, time in enumerate(times):
        found.setdefault(time // span, place)
    return found


@dataclass(slots=True)
class Thinned:
    """What thinning out has done."""

    squashed: list[str] = field(default_factory=list)
    """Steps that are part of another one now."""
    removed: list[str] = field(default_factory=list)
    """Steps that are gone with what they had changed."""
    in_use: list[str] = field(default_factory=list)
    """Steps that no rule wants, and that stay for now, as another mount that has them is in use."""
    freed: int = 0
    """Bytes of regular files."""


def keep(db: Database, mount: str, rules: Rules) -> Thinned:
    """Thin out the past of the mount with the id *mount*; see `Store.keep`."""
    if not (rules.every or rules.last or rules.daily):
        raise BadRequest("say what is to be kept: --every, --keep-last or --keep-daily")
    name = str(db.scalar("SELECT name FROM mounts WHERE id = ?", (mount,)))
    lock = squash.run_lock(name)
    try:
        return _thin(db, mount, name, rules)
    finally:
        lock.release()


def _thin(db: Database, mount: str, name: str, rules: Rules) -> Thinned:
    done = Thinned()
    with db.snapshot():
        present = str(db.scalar("SELECT step FROM mounts WHERE id = ?", (mount,)))
        tips = [present]
        query = "SELECT step FROM checkpoints WHERE mount = ? ORDER BY created DESC"
        tips += [str(step) for (step,) in db.execute(query, (mount,))]
        branches = _branches(db, tips)
        times = sorted(((created, step) for branch in branches for step, created in branch), reverse=True)
        chosen = rules.wanted([created for created, _ in times])
    wanted = {step for place, (_, step) in enumerate(times) if place in chosen} | {present}
    for tip, branch in zip(tips, branches, strict=True):
        if tip != present:
            _remove_top(db, mount, tip, [step for step, _ in branch], wanted, done)
    for branch in branches:
        _squash_branch(db, name, [step for step, _ in branch], wanted, done)
    return done


def _branches(db: Database, tips: Sequence[str]) -> list[list[tuple[str, int]]]:
    """Return the steps at and below each of *tips*, newest first, with their times, each step once.

    It goes down as far as no image has them: that is where a mount's own past begins.
    """
    seen: set[str] = set()
    found = []
    images = squash.in_images(db)
    for tip in tips:
        branch: list[tuple[str, int]] = []
        query = """
            WITH RECURSIVE chain (id, parent, created) AS (
                SELECT id, parent, created FROM steps WHERE id = ?1
                UNION ALL SELECT steps.id, steps.parent, steps.created
                FROM chain JOIN steps ON steps.id = chain.parent
            )
            SELECT id, created FROM chain
        """
        for step, created in db.execute(query, (tip,)):
            if step in seen or step in images:
                break
            branch.append((step, created))
            seen.add(step)
        found.append(branch)
    return found


def _remove_top(
    db: Database, mount: str, tip: str, branch: list[str], wanted: set[str], done: Thinned
) -> None:
    """Unless *tip*, which the mount went back from, is wanted, keep the next that is in its place."""
    if not branch or tip in wanted:
        return
    with db.transaction():
        steps = {str(step) for (step,) in db.execute("SELECT id FROM steps")}
        made = db.scalar(
            "DELETE FROM checkpoints WHERE mount = ? AND step = ? RETURNING created", (mount, tip)
        )
        rest = next((step for step in branch if step in wanted), None)
        if rest is not None and made is not None:
            add = "INSERT OR IGNORE INTO checkpoints (mount, step, created) VALUES (?, ?, ?)"
            db.execute(add, (mount, rest, made))
        sizes = layers.known_sizes(db)
        doomed = stacks.release_if_there(db, tip)
        gone = [step for step in branch if step in steps and not _exists(db, step)]
        for step in gone:
            db.execute("INSERT OR REPLACE INTO squashed (step, kept) VALUES (?, NULL)", (step,))
    done.removed += gone
    done.freed += sum(sizes.get(layer) or 0 for layer in doomed)
    layers.discard(db, *doomed)


def _exists(db: Database, step: str) -> bool:
    return db.scalar("SELECT 1 FROM steps WHERE id = ?", (step,)) is not None


def _squash_branch(db: Database, mount: str, branch: list[str], wanted: set[str], done: Thinned) -> None:
    """Squash the steps of *branch*, newest first, that are not wanted and may go, into those above them."""
    group: list[str] = []
    with db.snapshot():
        may_go = {
            step
            for step in branch
            if step not in wanted and _exists(db, step) and squash.why_not(db, step) is None
        }
    for step in [*branch, None]:
        if step is not None and step in may_go and group:
            group.append(step)
            continue
        if len(group) > 1:
            try:
                made = squash.squash_all(db, group[::-1], (mount,))
            except Conflict:
                done.in_use += group[1:]
            else:
                done.squashed += made.steps
                done.freed += made.freed
        group = [step] if step is not None and _exists(db, step) else []


def span(text: str) -> int:
    """Return the span of time that *text* means, "10m", "1h", "2d", in nanoseconds; raises `BadRequest`."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    number = text[:-1]
    if text[-1:] not in units or not number.isascii() or not number.isdigit() or not 0 < int(number) < 10**6:
        raise BadRequest(f"invalid span of time {text[:40]!r}: give one such as 10m, 1h or 7d")
    return int(number) * units[text[-1]] * 10**9
