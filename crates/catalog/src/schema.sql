CREATE TABLE dataset (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    source BLOB NOT NULL,
    fs_identity TEXT,
    counter INTEGER NOT NULL DEFAULT 0,
    hold TEXT,
    accept TEXT
) STRICT;

CREATE TABLE store (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    uuid TEXT,
    last_info TEXT,
    last_seen TEXT,
    reachable INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE replica (
    id INTEGER PRIMARY KEY,
    dataset INTEGER NOT NULL REFERENCES dataset (id),
    store INTEGER NOT NULL REFERENCES store (id),
    position INTEGER,
    sealed INTEGER NOT NULL DEFAULT 0,
    open_number INTEGER NOT NULL DEFAULT 0,
    open_records INTEGER NOT NULL DEFAULT 0,
    reconcile TEXT,
    est_files INTEGER NOT NULL DEFAULT 0,
    est_bytes INTEGER NOT NULL DEFAULT 0,
    last_success TEXT,
    last_attempt TEXT,
    last_status TEXT,
    last_verified TEXT,
    files INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    bytes_written INTEGER NOT NULL DEFAULT 0,
    -- Of the outbox: all rows; rows and bytes that are more than a directory's times.
    pending_rows INTEGER NOT NULL DEFAULT 0,
    pending_files INTEGER NOT NULL DEFAULT 0,
    pending_bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (dataset, store)
) STRICT;

-- A directory's id is greater than its parent's; rows are never removed, so it stays so.
CREATE TABLE dir (
    id INTEGER PRIMARY KEY,
    dataset INTEGER NOT NULL REFERENCES dataset (id),
    path BLOB NOT NULL,
    UNIQUE (dataset, path)
) STRICT;

-- What a replica holds now.
CREATE TABLE entry (
    replica INTEGER NOT NULL,
    dir INTEGER NOT NULL,
    name BLOB NOT NULL,
    born INTEGER NOT NULL,
    since INTEGER NOT NULL,
    size INTEGER NOT NULL,
    link INTEGER,
    node BLOB NOT NULL,
    PRIMARY KEY (replica, dir, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX entry_link ON entry (replica, link) WHERE link IS NOT NULL;

-- What it held in versions [born, died). The object lies
--   moved_dir null          in history, where version >= died left it, at this path;
--   moved_dir set, buried   the same, at the moved path;
--   moved_dir set           where the row at the moved path with born = this died has it.
CREATE TABLE past (
    replica INTEGER NOT NULL,
    dir INTEGER NOT NULL,
    name BLOB NOT NULL,
    born INTEGER NOT NULL,
    died INTEGER NOT NULL,
    since INTEGER NOT NULL,
    moved_dir INTEGER,
    moved_name BLOB,
    buried INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL,
    node BLOB NOT NULL,
    PRIMARY KEY (replica, dir, name, born)
) STRICT, WITHOUT ROWID;

CREATE INDEX past_moved ON past (replica, moved_dir, moved_name) WHERE moved_dir IS NOT NULL;

CREATE TABLE outbox (
    replica INTEGER NOT NULL,
    dir INTEGER NOT NULL,
    name BLOB NOT NULL,
    what TEXT NOT NULL,
    ino INTEGER NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (replica, dir, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE version (
    replica INTEGER NOT NULL REFERENCES replica (id),
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    sealed_at TEXT NOT NULL,
    received_at TEXT NOT NULL,
    files INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    pruned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (replica, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE run (
    id TEXT PRIMARY KEY,
    started TEXT NOT NULL,
    ended TEXT,
    status TEXT NOT NULL,
    pid INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    command TEXT NOT NULL,
    summary TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE run_dataset (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    dataset TEXT NOT NULL,
    store TEXT,
    status TEXT NOT NULL,
    error TEXT,
    summary TEXT
) STRICT;

CREATE INDEX run_dataset_run ON run_dataset (run);

CREATE TABLE finding (
    id TEXT PRIMARY KEY,
    severity TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    message TEXT NOT NULL,
    remedy TEXT NOT NULL,
    first_seen TEXT NOT NULL,
    last_seen TEXT NOT NULL,
    cleared_at TEXT
) STRICT, WITHOUT ROWID;
