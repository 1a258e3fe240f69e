-- API keys take turns in the queue of an endpoint, for each priority by itself (start-time fair queueing): a job's turn
-- is one after the last of its key that is queued, and after the latest that was leased. So a key that had nothing
-- queued is next, and one that has a thousand jobs queued gets one leased for each of another key.

ALTER TABLE jobs ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;

-- The latest turn that was leased.
CREATE TABLE turns (
    project  TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    rank     INTEGER NOT NULL,
    turn     INTEGER NOT NULL,
    PRIMARY KEY (project, endpoint, rank)
) WITHOUT ROWID;

-- Lease: high priority first, then by turn, then the oldest.
DROP INDEX jobs_queue;
CREATE INDEX jobs_queue ON jobs (project, endpoint, rank, turn, seq, available_at) WHERE state = 'queued';
-- Submit and retry: the last turn of a key.
CREATE INDEX jobs_turns ON jobs (project, endpoint, rank, key_id, turn) WHERE state = 'queued';
