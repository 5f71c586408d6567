-- What the page keeps itself, as web/store.sql has it in SQLite; times are seconds since 1970.
-- A schema of its own: roles that deliver, or read the account, have no business in it.

CREATE SCHEMA page;

CREATE TABLE page.session (
    token     text PRIMARY KEY,                    -- SHA-256 of what the browser holds
    csrf      text             NOT NULL,
    "user"    text,
    roles     text             NOT NULL,
    title     text             NOT NULL,
    began_at  double precision NOT NULL,
    seen_at   double precision NOT NULL,
    lapsed_at double precision                     -- since then it opens nothing
);
CREATE INDEX session_of_user ON page.session ("user");

CREATE TABLE page.document (
    kind       text             NOT NULL,
    id         text             NOT NULL,
    owner      text             NOT NULL,
    body       text             NOT NULL,
    saved_at   double precision NOT NULL,
    expires_at double precision NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX document_owner ON page.document (kind, owner, saved_at);
CREATE INDEX document_expires ON page.document (expires_at);

CREATE TABLE page.key (
    name   text PRIMARY KEY,
    octets bytea NOT NULL
);

CREATE TABLE page.account (
    name         text PRIMARY KEY,
    id           text             NOT NULL UNIQUE, -- stands in URLs
    password     text             NOT NULL,        -- Argon2id, with its parameters and salt
    role         text             NOT NULL,
    must_change  boolean          NOT NULL,
    disabled     boolean          NOT NULL,
    made_at      double precision NOT NULL,
    signed_in_at double precision
);

CREATE TABLE page.token (
    digest       text PRIMARY KEY,                 -- SHA-256 of what the caller holds
    name         text             NOT NULL UNIQUE,
    role         text             NOT NULL,
    made_by      text             NOT NULL,
    made_at      double precision NOT NULL,
    expires_at   double precision NOT NULL,
    last_used_at double precision,
    revoked_at   double precision
);

CREATE TABLE page.attempt (
    key     text PRIMARY KEY,                      -- a keyed digest of a name, an address or a browser
    count   integer          NOT NULL,
    last_at double precision NOT NULL
);

CREATE TABLE page.chore (
    name    text PRIMARY KEY,                      -- what one machine does for all
    done_at double precision NOT NULL
);

-- Spreadsheets: how far each is, who works on it, and its files in pieces.
CREATE TABLE page.batch (
    id          text PRIMARY KEY,                  -- as its document's
    status      text        NOT NULL,
    worker      text,
    lease_until timestamptz,
    stop        boolean     NOT NULL DEFAULT false,
    made_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE page.batch_file (
    batch  text    NOT NULL REFERENCES page.batch (id) ON DELETE CASCADE,
    name   text    NOT NULL,
    made   text    NOT NULL,                       -- which one of that name: whoever reads it sees one
    number integer NOT NULL,
    octets bytea   NOT NULL,
    PRIMARY KEY (batch, name, made, number)
);
ALTER TABLE page.batch_file ALTER COLUMN octets SET STORAGE EXTERNAL;
