"""What tests of builds in the store share: steps, chains of them in the cache, and a look at the whole."""

from __future__ import annotations

from datetime import UTC, datetime

from layerfs.store import Store

THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_step(store: Store, below: str | None, name: str) -> str:
    """Seal a layer with one file on top of *below*."""
    with store.steps.new_layer(below) as new:
        (new.path / name).write_text(name)
        return store.steps.seal_layer(new, below, created=THEN, created_by=f"COPY {name}")


def layer_directories(store: Store) -> set[str]:
    return {path.name for path in (store.root / "layers").iterdir()}


def problems(store: Store) -> list[str]:
    return [f"{problem.subject}: {problem.what}" for problem in store.check()]


def chain(store: Store, name: str, sizes: tuple[int, ...], below: str | None = None) -> list[str]:
    """Cache a step of each size on top of the one before, as NAME-0 and so on; return the steps."""
    steps = []
    for number, size in enumerate(sizes):
        with store.steps.new_layer(below) as new:
            (new.path / f"{name}-{number}").write_bytes(bytes(size))
            below = store.steps.seal_layer(new, below, created=THEN, created_by=f"RUN {name} {number}")
        store.build_cache.put(f"{name}-{number}", below, description=f"RUN {name} {number}")
        steps.append(below)
    return steps
