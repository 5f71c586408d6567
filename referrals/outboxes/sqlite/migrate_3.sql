-- From version 2: which addresses somebody has asked about.

CREATE TABLE verification (
    agency      TEXT NOT NULL,
    address     TEXT NOT NULL,
    verified_on TEXT NOT NULL,
    verified_by TEXT NOT NULL,
    PRIMARY KEY (agency, address)
) STRICT, WITHOUT ROWID;
