-- How far the stream of a job was taken (`JobStore.take_chunks`): by all gateways, and over their restarts.

CREATE TABLE cursors (
    job     INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    seq     INTEGER NOT NULL                           -- of the last chunk that was taken
);
