CREATE TABLE session (
    token TEXT PRIMARY KEY,  -- SHA-256 of what the browser holds
    csrf TEXT NOT NULL,
    user TEXT,
    roles TEXT NOT NULL,
    title TEXT NOT NULL,
    began_at REAL NOT NULL,
    seen_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX session_user ON session (user);
CREATE TABLE document (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    body TEXT NOT NULL,
    saved_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;
CREATE INDEX document_owner ON document (kind, owner, saved_at);
