-- Version 4; `migrate_2.sql` to `migrate_4.sql` make it of older ones. Times are UTC, in whole microseconds since 1970: they sort and index as they are.

CREATE TABLE message (
    id              INTEGER PRIMARY KEY,
    reference       TEXT    NOT NULL,
    case_reference  TEXT    NOT NULL,
    intervention    TEXT    NOT NULL,
    agency          TEXT    NOT NULL,
    content_key     TEXT    NOT NULL UNIQUE,   -- the same referral queued twice is one
    sender          TEXT    NOT NULL,          -- empty once the content is forgotten
    recipient       TEXT    NOT NULL,
    message_id      TEXT    NOT NULL,
    sha256          TEXT    NOT NULL,
    size            INTEGER NOT NULL,
    queued_at       INTEGER NOT NULL,
    trying_since    INTEGER NOT NULL,          -- since the first attempt, or the first after `retry`
    status          TEXT    NOT NULL,
    due_at          INTEGER,                   -- null: nothing is to be done with it
    lease_until     INTEGER,
    lease_owner     TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    failures        INTEGER NOT NULL DEFAULT 0,
    maybe_doubled   INTEGER NOT NULL DEFAULT 0,
    relayed_at      INTEGER,
    acknowledge_by  TEXT    NOT NULL,
    acknowledged_on TEXT,
    purged_at       INTEGER,
    facts_key       TEXT,
    replaces        INTEGER REFERENCES message (id)
) STRICT;

CREATE INDEX message_due ON message (agency, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX message_next ON message (status, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX message_leased ON message (agency, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX message_status ON message (status, id);
CREATE INDEX message_reference ON message (reference);
CREATE INDEX message_case ON message (case_reference);
CREATE UNIQUE INDEX message_replaces ON message (replaces) WHERE replaces IS NOT NULL;

-- The bytes lie apart, so that a change of status does not write them again.
CREATE TABLE content (
    message INTEGER PRIMARY KEY REFERENCES message (id),
    octets  BLOB NOT NULL
) STRICT;

CREATE TABLE attempt (
    id         INTEGER PRIMARY KEY,
    message    INTEGER NOT NULL REFERENCES message (id),
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    outcome    TEXT,                           -- null while it runs, or if its process died
    stage      TEXT,
    code       INTEGER,
    enhanced   TEXT,
    words      TEXT,
    relay      TEXT
) STRICT;

CREATE INDEX attempt_message ON attempt (message, id);

-- When any process last took a message, if it keeps a pace.
CREATE TABLE pace (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    claimed_at INTEGER
) STRICT;

INSERT INTO pace VALUES (1, NULL);

CREATE TABLE audit (
    number         INTEGER PRIMARY KEY,
    at             TEXT NOT NULL,
    actor          TEXT NOT NULL,
    action         TEXT NOT NULL,
    reference      TEXT NOT NULL,
    case_reference TEXT NOT NULL,
    detail         TEXT NOT NULL,
    before         TEXT NOT NULL,
    hash           TEXT NOT NULL
) STRICT;

CREATE INDEX audit_case ON audit (case_reference);

-- That somebody asked the agency whether this very address is theirs.
CREATE TABLE verification (
    agency      TEXT NOT NULL,
    address     TEXT NOT NULL,
    verified_on TEXT NOT NULL,
    verified_by TEXT NOT NULL,
    PRIMARY KEY (agency, address)
) STRICT, WITHOUT ROWID;

-- Agencies to which nothing goes until each is released.
CREATE TABLE hold (
    agency  TEXT    PRIMARY KEY,
    since   INTEGER NOT NULL,
    held_by TEXT    NOT NULL,
    why     TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Of facts that were to go to one address and then went to another: which message has them now.
CREATE TABLE rerouted (
    facts_key TEXT    NOT NULL,
    recipient TEXT    NOT NULL,
    message   INTEGER NOT NULL REFERENCES message (id),
    PRIMARY KEY (facts_key, recipient)
) STRICT, WITHOUT ROWID;

-- Links to relays of which only so many may be open.
CREATE TABLE relay_link (
    relay       TEXT    NOT NULL,
    owner       TEXT    NOT NULL,
    machine     TEXT    NOT NULL,
    since       INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    PRIMARY KEY (relay, owner)
) STRICT, WITHOUT ROWID;

-- Which relays are left alone, and until when.
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

-- As `pace`, for each relay that has one of its own.
CREATE TABLE relay_pace (
    relay      TEXT    PRIMARY KEY,
    claimed_at INTEGER
) STRICT, WITHOUT ROWID;

-- What `referrals backup` writes into the copy that it makes: the last moment and the last message
-- that the copy knows of. Null in the outbox itself.
CREATE TABLE origin (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    copied_as_of INTEGER,
    last_message INTEGER
) STRICT;

INSERT INTO origin VALUES (1, NULL, NULL);

CREATE TRIGGER content_is_immutable BEFORE UPDATE ON content
BEGIN SELECT RAISE(ABORT, 'queued bytes are immutable'); END;

CREATE TRIGGER content_is_kept_while_it_waits BEFORE DELETE ON content
WHEN EXISTS (SELECT 1 FROM message WHERE id = OLD.message
             AND (due_at IS NOT NULL OR lease_until IS NOT NULL))
BEGIN SELECT RAISE(ABORT, 'this message waits for the relay'); END;

CREATE TRIGGER message_is_immutable
BEFORE UPDATE OF id, reference, recipient, message_id, sha256, size, queued_at ON message
BEGIN SELECT RAISE(ABORT, 'what was queued is immutable'); END;

CREATE TRIGGER message_keeps_what_it_replaces BEFORE UPDATE OF facts_key, replaces ON message
BEGIN SELECT RAISE(ABORT, 'what was queued is immutable'); END;

CREATE TRIGGER sender_is_immutable BEFORE UPDATE OF sender ON message WHEN NEW.sender <> ''
BEGIN SELECT RAISE(ABORT, 'what was queued is immutable'); END;

CREATE TRIGGER message_is_not_deleted BEFORE DELETE ON message
BEGIN SELECT RAISE(ABORT, 'a message is never deleted'); END;

CREATE TRIGGER audit_is_not_altered BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;

CREATE TRIGGER audit_is_not_shortened BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
