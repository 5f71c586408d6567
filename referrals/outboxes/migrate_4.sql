-- From version 3: whether this is a restored copy.

-- What `referrals backup` writes into the copy that it makes: the last moment and the last message
-- that the copy knows of. Null in the outbox itself.
CREATE TABLE origin (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    copied_as_of INTEGER,
    last_message INTEGER
) STRICT;

INSERT INTO origin VALUES (1, NULL, NULL);
