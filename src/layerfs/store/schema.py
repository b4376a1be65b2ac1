"""The tables of `layerfs.db`, as the migrations that lead to them.

`PRAGMA user_version` counts the migrations a store has seen. Released migrations never change: a new
version of the schema is one more tuple at the end. Times are nanoseconds since the epoch, paths are
bytes (BLOB), `config`, `options` and `attributes` are JSON objects.
"""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE layers (
            id TEXT PRIMARY KEY,
            state TEXT NOT NULL CHECK (state IN ('active', 'sealed', 'external')),
            path BLOB UNIQUE,  -- NULL: layers/ID/fs in the store
            work BLOB,  -- of an active layer with a path
            created INTEGER NOT NULL,
            size INTEGER,
            manifest_done INTEGER NOT NULL DEFAULT 0
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE steps (  -- a step and those below it are a stack and its history
            id TEXT PRIMARY KEY,
            parent TEXT REFERENCES steps,  -- the step before, NULL for the first
            layer TEXT REFERENCES layers,  -- NULL: an empty layer
            created INTEGER NOT NULL,
            created_by TEXT NOT NULL,
            author TEXT NOT NULL,
            comment TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX steps_parent ON steps (parent)",
        "CREATE INDEX steps_layer ON steps (layer)",
        """
        CREATE TABLE images (
            id TEXT PRIMARY KEY,
            step TEXT NOT NULL REFERENCES steps,
            parent TEXT REFERENCES images,
            created INTEGER NOT NULL,
            author TEXT NOT NULL,
            comment TEXT NOT NULL,
            architecture TEXT NOT NULL,
            os TEXT NOT NULL,
            config TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX images_step ON images (step)",
        "CREATE INDEX images_parent ON images (parent)",
        """
        CREATE TABLE mounts (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            step TEXT NOT NULL REFERENCES steps,
            image TEXT,  -- what it was made from; the image may be gone
            parent TEXT REFERENCES images,  -- the parent of the next commit
            config TEXT NOT NULL,
            upper TEXT UNIQUE REFERENCES layers,
            mountpoint BLOB,
            options TEXT NOT NULL,
            created INTEGER NOT NULL,
            started INTEGER,
            ephemeral INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX mounts_step ON mounts (step)",
        "CREATE INDEX mounts_image ON mounts (image)",
        "CREATE INDEX mounts_parent ON mounts (parent)",
        """
        CREATE TABLE tags (
            name TEXT PRIMARY KEY,  -- repository:tag
            image TEXT NOT NULL REFERENCES images
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX tags_image ON tags (image)",
        """
        CREATE TABLE events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time INTEGER NOT NULL,
            type TEXT NOT NULL,
            action TEXT NOT NULL,
            actor TEXT NOT NULL,
            attributes TEXT NOT NULL
        ) STRICT
        """,
    ),
    (  # images that come in and go out: see on-disk-format.md, "Images of elsewhere"
        "ALTER TABLE layers ADD COLUMN diff_id TEXT",  # digest of the layer's tar archive, once known
        "ALTER TABLE layers ADD COLUMN chain_id TEXT",  # digest of the archives of it and all below it
        "ALTER TABLE layers ADD COLUMN alone INTEGER NOT NULL DEFAULT 0",  # 1: the tree needs none below it
        "CREATE INDEX layers_diff_id ON layers (diff_id)",
        "CREATE INDEX layers_chain_id ON layers (chain_id)",
        "ALTER TABLE images ADD COLUMN digest TEXT",  # SHA-256 of the document
        "ALTER TABLE images ADD COLUMN document BLOB",  # the OCI image configuration, once it is known
        "CREATE INDEX images_digest ON images (digest)",
    ),
    (  # what a crash may have damaged, and what may be removed after one: see on-disk-format.md, "Crashes"
        "ALTER TABLE layers ADD COLUMN sealed_in TEXT",  # boot of the commit that sealed it; NULL: not known
        "ALTER TABLE layers ADD COLUMN unverified INTEGER NOT NULL DEFAULT 0",  # 1: the manifest is younger
        """
        CREATE TABLE removable (  -- trees that may go once nobody holds their lock
            layer TEXT PRIMARY KEY
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TRIGGER layer_added AFTER INSERT ON layers BEGIN
            DELETE FROM removable WHERE layer = new.id;
        END
        """,
        """
        CREATE TRIGGER layer_removed AFTER DELETE ON layers BEGIN
            INSERT OR IGNORE INTO removable (layer) VALUES (old.id);
        END
        """,
    ),
    (  # which attributes are an overlay's own: see `layerfs.store.marks`
        "ALTER TABLE layers ADD COLUMN prefix TEXT CHECK (prefix IN ('trusted', 'user'))",  # NULL: not noted
        "ALTER TABLE layers ADD COLUMN outside INTEGER NOT NULL DEFAULT 0",  # 1: it was an upper outside
    ),
    (  # uppers that lay outside the store before that was noted: others may write to them, too
        "UPDATE layers SET outside = 1 WHERE state = 'active' AND path IS NOT NULL",
    ),
    (  # networks and volumes: see on-disk-format.md, "Networks" and "Volumes"
        """
        CREATE TABLE networks (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            driver TEXT NOT NULL CHECK (driver IN ('bridge', 'host', 'null')),
            created INTEGER NOT NULL,
            internal INTEGER NOT NULL,
            attachable INTEGER NOT NULL,
            ipv6 INTEGER NOT NULL,
            subnets TEXT NOT NULL,  -- JSON: what IPAM knows, a list of objects
            ipam TEXT NOT NULL,  -- JSON: options for IPAM, which are shown and have no effect
            labels TEXT NOT NULL,
            options TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE endpoints (  -- a container that runs, in a network
            id TEXT PRIMARY KEY,
            network TEXT NOT NULL REFERENCES networks,
            mount TEXT NOT NULL REFERENCES mounts ON DELETE CASCADE,
            interface TEXT NOT NULL,
            address TEXT,
            address6 TEXT,
            mac TEXT NOT NULL,
            names TEXT NOT NULL,  -- JSON: by which other containers find it
            boot TEXT NOT NULL,  -- a row of another boot stands for nothing
            UNIQUE (network, mount),
            UNIQUE (network, address),
            UNIQUE (network, address6),
            UNIQUE (mount, interface)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE ports (  -- of the host, that lead to a container that runs
            protocol TEXT NOT NULL,
            host_ip TEXT NOT NULL,
            host_port INTEGER NOT NULL,
            mount TEXT NOT NULL REFERENCES mounts ON DELETE CASCADE,
            container_port INTEGER NOT NULL,
            boot TEXT NOT NULL,
            PRIMARY KEY (protocol, host_port, host_ip)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX ports_mount ON ports (mount)",
        """
        CREATE TABLE volumes (  -- their data: volumes/NAME/_data
            name TEXT PRIMARY KEY,
            created INTEGER NOT NULL,
            anonymous INTEGER NOT NULL,
            labels TEXT NOT NULL,
            options TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE volume_uses (  -- by a container, whether or not it runs
            mount TEXT NOT NULL REFERENCES mounts ON DELETE CASCADE,
            destination TEXT NOT NULL,
            volume TEXT NOT NULL REFERENCES volumes,
            filled INTEGER NOT NULL DEFAULT 0,  -- 1: the image's content was offered to the volume
            up TEXT,  -- boot in which the container has it mounted, NULL: it does not run
            PRIMARY KEY (mount, destination)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX volume_uses_volume ON volume_uses (volume)",
    ),
    (  # names by digest, and which code may open the store: see on-disk-format.md, "The database"
        """
        CREATE TABLE digests (
            name TEXT PRIMARY KEY,  -- repository@digest of a manifest in a registry
            image TEXT NOT NULL REFERENCES images ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX digests_image ON digests (image)",
        "CREATE TABLE compatible (version INTEGER NOT NULL) STRICT",  # one row: see `COMPATIBLE`
    ),
    (  # builds: see on-disk-format.md, "Builds"
        """
        CREATE TABLE builds (  -- that go on, or whose process was killed; flock on tmp/ID
            id TEXT PRIMARY KEY,
            created INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE build_steps (  -- that a build needs until its end
            build TEXT NOT NULL REFERENCES builds ON DELETE CASCADE,
            step TEXT NOT NULL REFERENCES steps,
            PRIMARY KEY (build, step)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX build_steps_step ON build_steps (step)",
        """
        CREATE TABLE build_cache (
            key TEXT PRIMARY KEY,  -- what the builder calls the step by all that decides what is in it
            step TEXT NOT NULL REFERENCES steps,
            kind TEXT NOT NULL,
            description TEXT NOT NULL,
            created INTEGER NOT NULL,
            used INTEGER NOT NULL,
            uses INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX build_cache_step ON build_cache (step)",
        "ALTER TABLE mounts ADD COLUMN build TEXT",  # the build that it is for, which may have ended
    ),
    (  # what mounts stood on before they went back: see on-disk-format.md, "Checkpoints"
        """
        CREATE TABLE checkpoints (
            mount TEXT NOT NULL REFERENCES mounts,
            step TEXT NOT NULL REFERENCES steps,
            created INTEGER NOT NULL,
            PRIMARY KEY (mount, step)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX checkpoints_step ON checkpoints (step)",
    ),
    (  # what is known of steps, and of those that are no more: see on-disk-format.md, "Checkpoints"
        """
        CREATE TABLE step_changes (  -- counted once somebody has asked
            step TEXT PRIMARY KEY REFERENCES steps ON DELETE CASCADE,
            added INTEGER NOT NULL,
            changed INTEGER NOT NULL,
            deleted INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE squashed (  -- steps that are no more
            step TEXT PRIMARY KEY,
            kept TEXT  -- the step that has what it changed, NULL: none
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE rebased (  -- steps that others were squashed into, and what their ids are made of
            step TEXT PRIMARY KEY REFERENCES steps ON DELETE CASCADE,
            parent TEXT,
            layer TEXT
        ) STRICT, WITHOUT ROWID
        """,
        "ALTER TABLE layers ADD COLUMN plain INTEGER",  # 1: no directory opaque or renamed; NULL: not known
    ),
)

COMPATIBLE = 8
"""The number of migrations that code must know to open a store that has seen all of these.

Daemons of mounts live on when layerfs is upgraded, and commit to a store that a newer one has migrated. That
goes well while migrations only add: tables, indexes, columns that an INSERT may leave out; none that keeps
what older code would remove, as nothing that it knows refers to it. One that does more sets this to its own
number; what it was before counts for no store any more.
"""
