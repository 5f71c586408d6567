-- From version 3: links to relays, which relays are left alone, and the pace of each.

CREATE TABLE relay_link (
    relay       TEXT    NOT NULL,
    owner       TEXT    NOT NULL,
    machine     TEXT    NOT NULL,
    since       INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    PRIMARY KEY (relay, owner)
) STRICT, WITHOUT ROWID;

CREATE TABLE relay_state (
    relay         TEXT    PRIMARY KEY,
    stage         TEXT,                          -- null: it is well
    code          INTEGER,
    refused_login INTEGER NOT NULL,
    failures      INTEGER NOT NULL,
    since         INTEGER,
    until         INTEGER,
    turn          INTEGER NOT NULL,
    faults        INTEGER NOT NULL,
    returns       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE relay_pace (
    relay      TEXT    PRIMARY KEY,
    claimed_at INTEGER
) STRICT, WITHOUT ROWID;
