-- Agencies that are held, and messages that were made anew for another address.

ALTER TABLE message ADD COLUMN facts_key text, ADD COLUMN replaces bigint REFERENCES message (id);

-- What waits for an agency that is held has no job, so that no fetch has to step over it.
ALTER TABLE message
    DROP CONSTRAINT message_check,
    ADD CONSTRAINT message_has_use_for_its_job
        CHECK (job IS NULL OR due_at IS NOT NULL OR lease_until IS NOT NULL),
    ADD CONSTRAINT message_under_way_has_a_job CHECK (lease_until IS NULL OR job IS NOT NULL);

DROP INDEX message_first_turn;
DROP INDEX message_due;
CREATE INDEX message_first_turn ON message (turn) WHERE due_at IS NOT NULL AND job IS NOT NULL;
CREATE INDEX message_due ON message (status, due_at) WHERE due_at IS NOT NULL AND job IS NOT NULL;
CREATE INDEX message_kept ON message (agency, id) WHERE due_at IS NOT NULL AND job IS NULL;
CREATE UNIQUE INDEX message_replaces ON message (replaces) WHERE replaces IS NOT NULL;

CREATE TABLE hold (
    agency  text        PRIMARY KEY,
    since   timestamptz NOT NULL,
    held_by text        NOT NULL,
    why     text        NOT NULL
);

-- Of facts that were to go to one address and then went to another: which message has them now.
CREATE TABLE rerouted (
    facts_key text   NOT NULL,
    recipient text   NOT NULL,
    message   bigint NOT NULL REFERENCES message (id),
    PRIMARY KEY (facts_key, recipient)
);

CREATE OR REPLACE FUNCTION next_turn(whose text) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT greatest(
        coalesce(
            (SELECT max(turn) FROM message WHERE lease_until IS NOT NULL),
            (SELECT min(turn) FROM message WHERE due_at IS NOT NULL AND job IS NOT NULL),
            1
        ),
        1 + coalesce((SELECT max(turn) FROM message WHERE agency = whose AND job IS NOT NULL), 0)
    )
$$;

CREATE OR REPLACE FUNCTION refuse_while_it_waits() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM message
        WHERE id = OLD.message AND (due_at IS NOT NULL OR lease_until IS NOT NULL)
    ) THEN
        RAISE integrity_constraint_violation USING MESSAGE = 'this message waits for the relay';
    END IF;
    RETURN OLD;
END
$$;

-- Here, so that it holds for programs that do not know of holds, too: a worker that fetches a job
-- which its message has no use for forgets it.
CREATE FUNCTION keep_if_held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM hold WHERE agency = NEW.agency) THEN
        NEW.job := NULL;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER message_is_kept_if_held BEFORE INSERT OR UPDATE OF due_at, job ON message
    FOR EACH ROW WHEN (NEW.due_at IS NOT NULL AND NEW.job IS NOT NULL)
    EXECUTE FUNCTION keep_if_held();

CREATE TRIGGER message_keeps_what_it_replaces BEFORE UPDATE OF facts_key, replaces ON message
    FOR EACH ROW EXECUTE FUNCTION refuse('what was queued is immutable');
