-- Links to relays, which relays are left alone, and the pace of each.

CREATE TABLE relay_link (
    relay   text        NOT NULL,
    owner   text        NOT NULL,
    machine text        NOT NULL,
    worker  bigint      NOT NULL,                -- procrastinate's; its heartbeat tells that it lives
    since   timestamptz NOT NULL,
    PRIMARY KEY (relay, owner)
);

CREATE TABLE relay_state (
    relay         text    PRIMARY KEY,
    stage         text,                          -- null: it is well
    code          integer,
    refused_login boolean NOT NULL,
    failures      integer NOT NULL,
    since         timestamptz,
    until         timestamptz,
    turn          bigint  NOT NULL,
    faults        bigint  NOT NULL,
    returns       bigint  NOT NULL
);

CREATE TABLE relay_pace (
    relay      text        PRIMARY KEY,
    claimed_at timestamptz
);
