-- How much each part of a dataset that is made held when it was last good, as JSON in the engine's
-- words.
CREATE TABLE vitals (
    dataset INTEGER NOT NULL REFERENCES dataset (id),
    path BLOB NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (dataset, path)
) STRICT, WITHOUT ROWID;

-- What a database in a tree and its log looked like when a scan last noted it: its file alone does
-- not tell that it has changed.
CREATE TABLE logged (
    dir INTEGER NOT NULL REFERENCES dir (id),
    name BLOB NOT NULL,
    state BLOB NOT NULL,
    PRIMARY KEY (dir, name)
) STRICT, WITHOUT ROWID;
