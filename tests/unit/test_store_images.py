"""Images: finding, naming, history, removal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from layerfs.errors import BadRequest, Conflict, NotFound
from layerfs.store import Store
from layerfs.store.model import Image, Mount, Removal


def commit(store: Store, name: str, reference: str | None, content: str = "") -> Image:
    mount = store.mount(name)
    assert mount.upper is not None
    (store.layer(mount.upper).path / "written").write_text(content)
    return store.commit(mount, store.prepare_upper(mount), reference=reference, comment=f"c {reference}")


def layer_directories(store: Store) -> set[str]:
    return {path.name for path in (store.root / "layers").iterdir()}


def test_every_way_to_name_an_image(store: Store, base: Image) -> None:
    references = [
        "debian:12",
        base.id,
        f"sha256:{base.id}",
        base.id[:12],
        base.id[:1],
        f"sha256:{base.id[:5]}",
    ]
    for reference in references:
        assert store.resolve(reference) == base
    assert base.tags == ("debian:12",)
    for reference in ["debian", "other:12", "0" * 64, f"sha256:{'0' * 64}"]:
        with pytest.raises(NotFound, match=r"^no such image: "):
            store.resolve(reference)
    with pytest.raises(BadRequest):
        store.resolve("Not A Name")


def test_ambiguous_beginning_of_an_id(store: Store, tree: Path) -> None:
    ids = [store.import_image(tree / "etc", None).id for _ in range(17)]
    digit = next(digit for digit in "0123456789abcdef" if sum(i.startswith(digit) for i in ids) > 1)
    with pytest.raises(BadRequest, match="several images"):
        store.resolve(digit)


def test_a_name_wins_over_the_beginning_of_an_id(store: Store, tree: Path) -> None:
    first = store.import_image(tree / "etc", None)
    second = store.import_image(tree / "etc", first.id[:12])
    assert store.resolve(first.id[:12]).id == second.id
    assert store.remove_image(first.id[:12])[0] == Removal(untagged=f"{first.id[:12]}:latest")
    assert store.resolve(first.id[:12]).id == first.id


def test_tags_move(store: Store, base: Image, tree: Path) -> None:
    assert store.tag(base.id, "docker.io/library/sid") == "sid:latest"
    assert store.resolve("sid").tags == ("debian:12", "sid:latest")
    other = store.import_image(tree / "etc", "sid")
    assert store.resolve("sid").id == other.id
    assert [image.id for image in store.images()] == [other.id, base.id]
    store.untag("sid")
    assert store.resolve(other.id).tags == ()
    with pytest.raises(NotFound):
        store.untag("sid")
    with pytest.raises(NotFound):
        store.tag("0" * 64, "x")
    with pytest.raises(BadRequest):
        store.tag(base.id, "X")


def test_history_shows_images_of_the_store(store: Store, base: Image, mount: Mount) -> None:
    first = commit(store, mount.name, None, "12345")
    second = commit(store, mount.name, "node-base", "123")
    rows = store.history(second)
    assert [(row.id, row.size, row.tags) for row in rows] == [
        (second.id, 3, ("node-base:latest",)),
        (first.id, 5, ()),
        (base.id, store.layer_size(base.layers[0]), ("debian:12",)),
    ]
    assert [row.comment for row in rows] == ["c node-base", "c None", ""]
    assert rows[-1].created_by.startswith("Imported from ")
    assert store.image_size(second) == sum(row.size for row in rows)


def test_history_of_what_was_removed_is_missing(store: Store, mount: Mount) -> None:
    first = commit(store, mount.name, "first", "1")
    store.remove_image("first")
    with pytest.raises(NotFound):
        store.resolve(first.id)
    second = commit(store, mount.name, "second", "22")
    assert second.layers[:-1] == first.layers
    assert [row.id for row in store.history(second)] == [second.id, "<missing>", mount.image]
    assert [row.size for row in store.history(second)][:2] == [2, 1]


def test_an_image_in_use_stays(store: Store, base: Image, mount: Mount) -> None:
    with pytest.raises(Conflict) as caught:
        store.remove_image("debian:12")
    assert str(caught.value) == (
        'conflict: unable to remove repository reference "debian:12" (must force)'
        f" - mount base-container is using its referenced image {base.id[:12]}"
    )
    with pytest.raises(Conflict, match=r"must be forced.* stopped mount base-container"):
        store.remove_image(base.id)
    store.set_mounted(mount.id, "/mnt", datetime.now(UTC))
    with pytest.raises(Conflict, match=r"cannot be forced.* running mount base-container"):
        store.remove_image(base.id, force=True)
    assert store.remove_image("debian:12", force=True) == [Removal(untagged="debian:12")]
    assert store.resolve(base.id).tags == ()


def test_layers_outlive_their_image_while_a_mount_uses_them(store: Store, base: Image, mount: Mount) -> None:
    removals = store.remove_image("debian:12", force=True)
    assert removals == [Removal(untagged="debian:12"), Removal(deleted=f"sha256:{base.id}")]
    assert store.images() == []
    assert (store.layer(base.layers[0]).path / "etc/passwd").is_file()
    assert store.mount(mount.name).config == base.config
    image = commit(store, mount.name, "kept")
    assert image.layers[0] == base.layers[0]
    store.remove_mount(mount.id)
    store.remove_image("kept")
    assert layer_directories(store) == set()


def test_a_parent_stays_and_goes_with_its_last_child(store: Store, base: Image, mount: Mount) -> None:
    child = commit(store, mount.name, "child")
    store.remove_mount(mount.id)
    with pytest.raises(Conflict, match=r"cannot be forced.*dependent child images"):
        store.remove_image(base.id, force=True)
    assert store.remove_image("debian:12") == [Removal(untagged="debian:12")]
    assert store.remove_image("child") == [
        Removal(untagged="child:latest"),
        Removal(deleted=f"sha256:{child.id}"),
        Removal(deleted=f"sha256:{child.layers[1]}"),
        Removal(deleted=f"sha256:{base.id}"),
        Removal(deleted=f"sha256:{base.layers[0]}"),
    ]
    assert layer_directories(store) == set()


def test_without_pruning_the_parent_stays(store: Store, base: Image, mount: Mount) -> None:
    commit(store, mount.name, "child")
    store.remove_mount(mount.id)
    store.untag("debian:12")
    store.remove_image("child", prune=False)
    assert [image.id for image in store.images()] == [base.id]


def test_several_names(store: Store, base: Image) -> None:
    store.tag(base.id, "debian:13")
    store.tag(base.id, "other")
    with pytest.raises(Conflict, match="referenced in multiple repositories"):
        store.remove_image(base.id)
    assert store.remove_image("other") == [Removal(untagged="other:latest")]
    removals = store.remove_image(base.id[:10])
    assert removals[:2] == [Removal(untagged="debian:12"), Removal(untagged="debian:13")]
    assert store.images() == []
    with pytest.raises(NotFound, match="no such image: debian:12"):
        store.remove_image("debian:12")


def test_events_tell_what_happened(store: Store, base: Image, mount: Mount) -> None:
    seen = store.events()[-1].id
    image = commit(store, mount.name, "child")
    store.set_mounted(mount.id, "/mnt", datetime.now(UTC))
    store.set_unmounted(mount.id)
    store.remove_mount(mount.id)
    store.remove_image("child")
    store.record_event("image", "save", base.id, {"name": "x"})
    told = [(event.type, event.action, event.actor) for event in store.events(seen)]
    assert told == [
        ("container", "commit", mount.id),
        ("image", "tag", image.id),
        ("container", "mount", mount.id),
        ("container", "unmount", mount.id),
        ("container", "destroy", mount.id),
        ("image", "untag", image.id),
        ("image", "delete", image.id),
        ("image", "save", base.id),
    ]
    assert [event.action for event in store.events()][:3] == ["import", "tag", "create"]


def test_only_the_newest_events_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfs.store.events.KEPT", 5)
    for number in range(12):
        store.record_event("image", str(number), "x", {})
    assert [event.action for event in store.events()] == ["7", "8", "9", "10", "11"]


def test_data_version_shows_changes_by_others(store: Store, base: Image) -> None:
    before = store.data_version()
    store.tag(base.id, "mine")
    assert store.data_version() == before
    with Store(store.root) as other:
        other.tag(base.id, "theirs")
    assert store.data_version() != before


DIGEST, OTHER = (f"sha256:{letter * 64}" for letter in "ab")


def test_an_image_is_found_by_the_digest_that_it_has_in_a_registry(store: Store, base: Image) -> None:
    store.note_digest(base.id, f"debian@{DIGEST}")
    for name in (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian:any@{DIGEST}"):
        assert store.resolve(name).digests == (f"debian@{DIGEST}",)
    for name in (f"debian@{OTHER}", f"host:5000/debian@{DIGEST}"):
        with pytest.raises(NotFound, match=f"no such image: {name}"):
            store.resolve(name)
    with pytest.raises(BadRequest, match="is no digest"):
        store.resolve("debian@12")
    with pytest.raises(NotFound):
        store.note_digest("0" * 64, f"debian@{DIGEST}")


def test_a_digest_goes_with_the_last_tag_of_its_repository(store: Store, base: Image) -> None:
    for tag in ("debian:stable", "other:1"):
        store.tag(base.id, tag)
    store.note_digest(base.id, f"debian@{DIGEST}")
    store.note_digest(base.id, f"other@{DIGEST}")
    assert store.remove_image("debian:12") == [Removal(untagged="debian:12")]
    assert store.remove_image("debian:stable") == [
        Removal(untagged="debian:stable"), Removal(untagged=f"debian@{DIGEST}")
    ]  # fmt: skip
    assert store.resolve("other:1").digests == (f"other@{DIGEST}",)
    removed = store.remove_image("other:1")
    assert removed[:3] == [
        Removal(untagged="other:1"), Removal(untagged=f"other@{DIGEST}"), Removal(deleted=f"sha256:{base.id}")
    ]  # fmt: skip


def test_an_image_whose_tag_has_moved_on_goes_with_a_prune(store: Store, base: Image, tree: Path) -> None:
    """It has its digest still; dockerd removes it, too."""
    store.note_digest(base.id, f"debian@{DIGEST}")
    assert store.prune_images(tagged=False)[0] == []
    newer = store.import_image(tree / "etc", "debian:12")
    removals = store.prune_images(tagged=False)[0]
    assert removals[:2] == [Removal(untagged=f"debian@{DIGEST}"), Removal(deleted=f"sha256:{base.id}")]
    assert [image.id for image in store.images()] == [newer.id]


@pytest.mark.parametrize("name", ["debian:12", f"debian@{DIGEST}"])
def test_the_names_of_an_image_in_use_are_one_if_they_are_in_one_repository(
    store: Store, base: Image, mount: Mount, name: str
) -> None:
    store.note_digest(base.id, f"debian@{DIGEST}")
    with pytest.raises(Conflict, match="must force"):
        store.remove_image(name)
    store.note_digest(base.id, f"other@{DIGEST}")
    assert Removal(untagged=name) in store.remove_image(name)
    assert store.images() != []


def test_an_image_with_names_in_two_repositories_is_not_removed_by_its_id(store: Store, base: Image) -> None:
    store.note_digest(base.id, f"other@{DIGEST}")
    with pytest.raises(Conflict, match="multiple repositories"):
        store.remove_image(base.id)
    store.remove_image(base.id, force=True)
    assert store.images() == []


def test_an_image_with_a_digest_alone_is_removed_with_that(store: Store, base: Image) -> None:
    store.note_digest(base.id, f"debian@{DIGEST}")
    store.untag("debian:12")
    removed = store.remove_image(f"debian@{DIGEST}")
    assert removed[:2] == [Removal(untagged=f"debian@{DIGEST}"), Removal(deleted=f"sha256:{base.id}")]
    assert store.images() == []


def test_a_digest_is_the_name_of_one_image(store: Store, base: Image, mount: Mount) -> None:
    made = commit(store, mount.name, "made:1")
    store.note_digest(base.id, f"debian@{DIGEST}")
    store.note_digest(made.id, f"debian@{DIGEST}")
    assert store.resolve(f"debian@{DIGEST}").id == made.id
    assert store.resolve(base.id).digests == ()
