-- From version 1: a pace that all processes keep, and indexes by agency and by status.

DROP INDEX message_next;
DROP INDEX message_leased;
CREATE INDEX message_next ON message (status, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX message_leased ON message (agency, lease_until) WHERE lease_until IS NOT NULL;

CREATE TABLE pace (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    claimed_at INTEGER
) STRICT;

INSERT INTO pace VALUES (1, NULL);
