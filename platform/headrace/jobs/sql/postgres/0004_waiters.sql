-- Clients that wait for the end of a job (of sync calls with a key), through whichever gateway.

CREATE TABLE headrace.waiters (
    id    text PRIMARY KEY,
    job   text NOT NULL REFERENCES headrace.jobs ON DELETE CASCADE,
    owner text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON COLUMN headrace.waiters.owner IS 'The gateway, which takes its clients with it.';
CREATE INDEX waiters_job ON headrace.waiters (job);
CREATE INDEX waiters_owner ON headrace.waiters (owner);
