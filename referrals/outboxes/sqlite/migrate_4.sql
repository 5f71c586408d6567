-- From version 3: agencies that are held, and messages that were made anew for another address.

ALTER TABLE message ADD COLUMN facts_key       TEXT;
ALTER TABLE message ADD COLUMN replaces        INTEGER REFERENCES message (id);
CREATE UNIQUE INDEX message_replaces ON message (replaces) WHERE replaces IS NOT NULL;

CREATE TABLE hold (
    agency  TEXT    PRIMARY KEY,
    since   INTEGER NOT NULL,
    held_by TEXT    NOT NULL,
    why     TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE rerouted (
    facts_key TEXT    NOT NULL,
    recipient TEXT    NOT NULL,
    message   INTEGER NOT NULL REFERENCES message (id),
    PRIMARY KEY (facts_key, recipient)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER message_keeps_what_it_replaces BEFORE UPDATE OF facts_key, replaces ON message
BEGIN SELECT RAISE(ABORT, 'what was queued is immutable'); END;

-- And links to relays, which relays are left alone, and the pace of each.

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

-- And whether this is a restored copy.

-- What `referrals backup` writes into the copy that it makes: the last moment and the last message
-- that the copy knows of. Null in the outbox itself.
CREATE TABLE origin (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    copied_as_of INTEGER,
    last_message INTEGER
) STRICT;

INSERT INTO origin VALUES (1, NULL, NULL);
