-- Jobs, their bodies, attempts, stream chunks, webhook events and counters.
-- A migration that was released is never changed: add the next number. PRAGMA user_version is the last that ran.
-- Times are seconds since the Unix epoch. Triggers keep what follows from a move, so that no statement forgets it.

CREATE TABLE jobs (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT, -- order of submission; never used again
    id              TEXT NOT NULL UNIQUE,
    project         TEXT NOT NULL,
    endpoint        TEXT NOT NULL,
    state           TEXT NOT NULL,
    rank            INTEGER NOT NULL,                  -- of the priority: 0 is high
    idempotency_key TEXT,
    fingerprint     TEXT NOT NULL,
    spec            TEXT NOT NULL,                     -- JSON: what never changes and no query asks for
    notify          INTEGER NOT NULL,                  -- webhook events wanted: 1 start, 2 output, 4 completed
    max_attempts    INTEGER NOT NULL,
    retention_s     REAL NOT NULL,
    input_data      BLOB,                              -- when small; else in bodies or in the blob store
    input_blob      TEXT,
    created_at      REAL NOT NULL,
    ttl_s           REAL,
    deadline_at     REAL,
    available_at    REAL NOT NULL,                     -- queued, but not to be leased before
    moved_at        REAL NOT NULL,                     -- of the last move
    lease_owner     TEXT,
    lease_until     REAL,
    attempts        INTEGER NOT NULL DEFAULT 0,        -- the latest attempt's number, which is also its fence
    lost            INTEGER NOT NULL DEFAULT 0,
    retried         INTEGER NOT NULL DEFAULT 0,
    base_attempts   INTEGER NOT NULL DEFAULT 0,        -- attempts and lost at the last retry: a retry's budget is new
    base_lost       INTEGER NOT NULL DEFAULT 0,
    started_at      REAL,
    finished_at     REAL,
    expires_at      REAL,                              -- to be removed then
    output          TEXT,                              -- JSON of the payload without its data
    output_data     BLOB,
    output_blob     TEXT,
    error           TEXT,                              -- JSON, problem document
    receipt         TEXT,                              -- JSON
    progress        TEXT,                              -- JSON
    reason          TEXT NOT NULL DEFAULT ''
);

-- Lease: high priority first, then oldest.
CREATE INDEX jobs_queue ON jobs (project, endpoint, rank, seq, available_at) WHERE state = 'queued';
-- Sweep: leases, deadlines, retention.
CREATE INDEX jobs_lease ON jobs (lease_until) WHERE state = 'running';
CREATE INDEX jobs_deadline ON jobs (deadline_at) WHERE deadline_at IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX jobs_owner ON jobs (lease_owner) WHERE state = 'running';
-- Submit: one job per key.
CREATE UNIQUE INDEX jobs_key ON jobs (project, endpoint, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- List: a project's jobs, and one endpoint's in one state, newest first.
CREATE INDEX jobs_project ON jobs (project, seq);
CREATE INDEX jobs_state ON jobs (project, endpoint, state, seq);
-- Whether a blob is still named.
CREATE INDEX jobs_input_blob ON jobs (input_blob) WHERE input_blob IS NOT NULL;
CREATE INDEX jobs_output_blob ON jobs (output_blob) WHERE output_blob IS NOT NULL;

-- Bodies of middle size, apart so that a move does not rewrite them.
CREATE TABLE bodies (
    job  INTEGER NOT NULL,                             -- jobs.seq
    kind INTEGER NOT NULL,                             -- 0 input, 1 output
    data BLOB NOT NULL,
    PRIMARY KEY (job, kind)
) WITHOUT ROWID;

CREATE TABLE attempts (
    job        INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    owner      TEXT NOT NULL,
    started_at REAL NOT NULL,
    ended_at   REAL,
    instance   TEXT NOT NULL DEFAULT '',
    outcome    TEXT NOT NULL DEFAULT '',
    detail     TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

CREATE TABLE chunks (
    job     INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    data    BLOB NOT NULL,
    PRIMARY KEY (job, attempt, seq)
);

CREATE TABLE deliveries (
    id         TEXT PRIMARY KEY,
    job        TEXT NOT NULL,                          -- jobs.id; the job may be removed before
    project    TEXT NOT NULL,
    event      TEXT NOT NULL,
    url        TEXT NOT NULL,
    body       BLOB NOT NULL,
    blob       TEXT,                                   -- named by the body
    tries      INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    next_at    REAL,                                   -- NULL: given up
    detail     TEXT NOT NULL DEFAULT ''
);
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX deliveries_job ON deliveries (job);
CREATE INDEX deliveries_blob ON deliveries (blob) WHERE blob IS NOT NULL;

-- Blobs that may have lost their last name. Each is offered twice, some time apart, should a deletion be missed.
CREATE TABLE orphans (
    blob    TEXT PRIMARY KEY,
    next_at REAL NOT NULL,
    offers  INTEGER NOT NULL
) WITHOUT ROWID;

-- Jobs per endpoint and state, and under 'retried' the retries of those that are kept.
CREATE TABLE counters (
    project  TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    state    TEXT NOT NULL,
    n        INTEGER NOT NULL,
    PRIMARY KEY (project, endpoint, state)
) WITHOUT ROWID;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER jobs_inserted AFTER INSERT ON jobs BEGIN
    INSERT INTO counters VALUES (NEW.project, NEW.endpoint, NEW.state, 1)
    ON CONFLICT (project, endpoint, state) DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN OLD.state <> NEW.state BEGIN
    UPDATE counters SET n = n - 1
    WHERE project = OLD.project AND endpoint = OLD.endpoint AND state = OLD.state;
    INSERT INTO counters VALUES (NEW.project, NEW.endpoint, NEW.state, 1)
    ON CONFLICT (project, endpoint, state) DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER jobs_retried AFTER UPDATE OF retried ON jobs WHEN OLD.retried <> NEW.retried BEGIN
    INSERT INTO counters VALUES (NEW.project, NEW.endpoint, 'retried', 1)
    ON CONFLICT (project, endpoint, state) DO UPDATE SET n = n + 1;
    DELETE FROM chunks WHERE job = NEW.seq;
    DELETE FROM bodies WHERE job = NEW.seq AND kind = 1;
    INSERT OR REPLACE INTO orphans SELECT OLD.output_blob, 0, 0 WHERE OLD.output_blob IS NOT NULL;
END;

CREATE TRIGGER jobs_leased AFTER UPDATE OF state ON jobs WHEN NEW.state = 'running' BEGIN
    INSERT INTO attempts (job, number, owner, started_at)
    VALUES (NEW.seq, NEW.attempts, NEW.lease_owner, NEW.started_at);
END;

-- The chunks of a new attempt replace those of the one before.
CREATE TRIGGER jobs_leased_again AFTER UPDATE OF state ON jobs WHEN NEW.state = 'running' AND NEW.attempts > 1
BEGIN
    DELETE FROM chunks WHERE job = NEW.seq;
END;

CREATE TRIGGER jobs_lease_ended AFTER UPDATE OF state ON jobs WHEN OLD.state = 'running' BEGIN
    UPDATE attempts
    SET ended_at = NEW.moved_at,
        outcome = CASE WHEN NEW.state = 'queued' OR NEW.lost > OLD.lost THEN 'lost' ELSE NEW.state END,
        detail = NEW.reason
    WHERE job = OLD.seq AND number = OLD.attempts;
END;

CREATE TRIGGER jobs_removed AFTER DELETE ON jobs BEGIN
    UPDATE counters SET n = n - 1
    WHERE project = OLD.project AND endpoint = OLD.endpoint AND state = OLD.state;
    UPDATE counters SET n = n - OLD.retried
    WHERE project = OLD.project AND endpoint = OLD.endpoint AND state = 'retried';
    DELETE FROM bodies WHERE job = OLD.seq;
    DELETE FROM attempts WHERE job = OLD.seq;
    DELETE FROM chunks WHERE job = OLD.seq;
    DELETE FROM deliveries WHERE job = OLD.id AND next_at IS NULL;
    INSERT OR REPLACE INTO orphans SELECT OLD.input_blob, 0, 0 WHERE OLD.input_blob IS NOT NULL;
    INSERT OR REPLACE INTO orphans SELECT OLD.output_blob, 0, 0 WHERE OLD.output_blob IS NOT NULL;
END;

CREATE TRIGGER deliveries_removed AFTER DELETE ON deliveries WHEN OLD.blob IS NOT NULL BEGIN
    INSERT OR REPLACE INTO orphans VALUES (OLD.blob, 0, 0);
END;

-- A job as it is read; input_data and output_data wherever they lie.
CREATE VIEW job_rows AS
SELECT seq, id, project, endpoint, state, rank, fingerprint, spec, notify, max_attempts, created_at, deadline_at,
       started_at, finished_at, attempts, lost, retried, base_attempts, base_lost, lease_owner, lease_until,
       output, error, receipt, progress, reason,
       coalesce(input_data, (SELECT data FROM bodies WHERE job = seq AND kind = 0)) AS input_data,
       coalesce(output_data, (SELECT data FROM bodies WHERE job = seq AND kind = 1)) AS output_data
FROM jobs;
