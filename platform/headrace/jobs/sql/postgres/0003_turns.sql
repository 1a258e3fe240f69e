-- API keys take turns in the queue of an endpoint, for each priority by itself (start-time fair queueing): a job's turn
-- is one after the last of its key that is queued, and after the latest that was leased. So a key that had nothing
-- queued is next, and one that has a thousand jobs queued gets one leased for each of another key.

-- Without a default at first: deliveries hold rows of this table as a type.
ALTER TABLE headrace.jobs ADD COLUMN turn bigint;
UPDATE headrace.jobs SET turn = 0;
ALTER TABLE headrace.jobs ALTER COLUMN turn SET DEFAULT 0, ALTER COLUMN turn SET NOT NULL;

CREATE TABLE headrace.turns (
    project  text NOT NULL,
    endpoint text NOT NULL,
    rank     smallint NOT NULL,
    turn     bigint NOT NULL,
    PRIMARY KEY (project, endpoint, rank)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE headrace.turns IS 'The latest turn that was leased. Nobody waits for it: a lease that finds it locked leaves it as it is.';

DROP INDEX headrace.jobs_queue;
CREATE INDEX jobs_queue ON headrace.jobs (project, endpoint, rank, turn, seq) WHERE state = 'queued';
CREATE INDEX jobs_turns ON headrace.jobs (project, endpoint, rank, key_id, turn) WHERE state = 'queued';
