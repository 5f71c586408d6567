-- As outboxes/postgres/schema/0005_page.sql has them in PostgreSQL.
CREATE TABLE IF NOT EXISTS session (
    token TEXT PRIMARY KEY,  -- SHA-256 of what the browser holds
    csrf TEXT NOT NULL,
    user TEXT,
    roles TEXT NOT NULL,
    title TEXT NOT NULL,
    began_at REAL NOT NULL,
    seen_at REAL NOT NULL,
    lapsed_at REAL  -- since then it opens nothing
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS session_user ON session (user);
CREATE TABLE IF NOT EXISTS document (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    body TEXT NOT NULL,
    saved_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;
CREATE INDEX IF NOT EXISTS document_owner ON document (kind, owner, saved_at);
CREATE TABLE IF NOT EXISTS key (
    name TEXT PRIMARY KEY,
    octets BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS account (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,  -- stands in URLs
    password TEXT NOT NULL,  -- Argon2id, with its parameters and salt
    role TEXT NOT NULL,
    must_change INTEGER NOT NULL,
    disabled INTEGER NOT NULL,
    made_at REAL NOT NULL,
    signed_in_at REAL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS token (
    digest TEXT PRIMARY KEY,  -- SHA-256 of what the caller holds
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    made_by TEXT NOT NULL,
    made_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    last_used_at REAL,
    revoked_at REAL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempt (
    key TEXT PRIMARY KEY,  -- a keyed digest of an account's name, an address or a browser
    count INTEGER NOT NULL,
    last_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chore (
    name TEXT PRIMARY KEY,  -- what one process does for all
    done_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
