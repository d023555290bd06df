-- Up to where a dataset's scans have used the change feed, and how far its audit has come.
CREATE TABLE feed (
    dataset INTEGER PRIMARY KEY REFERENCES dataset (id),
    -- In the engine's words; null: the next scan has to walk, because of `broken`.
    position TEXT,
    broken TEXT,
    -- The audit goes round by directory id: the last one that it looked at (null: it begins anew), and when
    -- that was.
    audit_dir INTEGER,
    audit_at TEXT,
    -- When all of the dataset had been looked at once more.
    audited TEXT,
    -- Changes that the feed did not tell, ever.
    missed INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Files that were open for writing at the last scan: what is written to them may not be told.
CREATE TABLE feed_open (
    dataset INTEGER NOT NULL REFERENCES dataset (id),
    path BLOB NOT NULL,
    mapped INTEGER NOT NULL,
    PRIMARY KEY (dataset, path)
) STRICT, WITHOUT ROWID;

-- The tracker's last sign of life that a run saw, as JSON: one row at most.
CREATE TABLE tracker (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    status TEXT NOT NULL
) STRICT;
