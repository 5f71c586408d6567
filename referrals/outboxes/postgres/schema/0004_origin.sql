-- Where this outbox lives, so that a restored copy is noticed: a dump makes its tables anew, with
-- other numbers; another server has another identifier; a backup that was recovered, and a standby
-- that was promoted, go on in another timeline.

CREATE TABLE origin (
    id                integer PRIMARY KEY CHECK (id = 1),
    system_identifier bigint  NOT NULL,
    database          bigint  NOT NULL,
    tables            bigint  NOT NULL,
    timeline          integer NOT NULL,
    copied_as_of      timestamptz,          -- the copy's last moment, once somebody wrote to it
    last_message      bigint,               -- and the last message that it was made with
    CHECK ((copied_as_of IS NULL) = (last_message IS NULL))
);

-- The timeline is that of what is written now: pg_control_checkpoint() lags after a promotion.
CREATE FUNCTION here(
    OUT system_identifier bigint, OUT database bigint, OUT tables bigint, OUT timeline integer
) LANGUAGE sql STABLE AS $$
    SELECT control.system_identifier,
        (SELECT oid::bigint FROM pg_catalog.pg_database
         WHERE datname = pg_catalog.current_database()),
        'referrals.origin'::pg_catalog.regclass::oid::bigint,
        CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN
            ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))
                ::bit(32)::integer
        END
    FROM pg_catalog.pg_control_system() AS control
$$;

INSERT INTO origin SELECT 1, here.* FROM here();
