-- The fingerprints of the blocks of large contents that have changed once, by the content's digest:
-- with them a change costs what changed. Each goes when no replica of the dataset holds that content
-- at that name; without it the store is asked for it.
CREATE TABLE signature (
    hash BLOB PRIMARY KEY,
    dataset INTEGER NOT NULL,
    dir INTEGER NOT NULL,
    name BLOB NOT NULL,
    data BLOB NOT NULL
) STRICT;
