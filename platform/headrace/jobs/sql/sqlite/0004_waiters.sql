-- Clients that wait for the end of a job (of sync calls with a key), through whichever gateway.

CREATE TABLE waiters (
    id    TEXT PRIMARY KEY,
    job   INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
    owner TEXT NOT NULL                                -- the gateway, which takes its clients with it
) WITHOUT ROWID;
CREATE INDEX waiters_job ON waiters (job);
CREATE INDEX waiters_owner ON waiters (owner);
