-- Jobs, their attempts, stream chunks, webhooks and counts. Times are seconds since the Unix epoch, by the caller's
-- clock. What callers give as JSON is bytea: it comes back byte for byte, and a NUL in it is no error.

CREATE TABLE headrace.jobs (
    id                  text PRIMARY KEY,
    seq                 bigint GENERATED ALWAYS AS IDENTITY,
    project             text NOT NULL,
    endpoint            text NOT NULL,
    api                 text NOT NULL,
    state               text NOT NULL DEFAULT 'queued',
    rank                smallint NOT NULL,
    version             bigint,
    method              text NOT NULL,
    path                text NOT NULL,
    key_id              text NOT NULL,
    input_type          text NOT NULL,
    input_data          bytea NOT NULL,
    input_blob          text NOT NULL,
    input_size          bigint NOT NULL,
    idempotency_key     text,
    fingerprint         text NOT NULL,
    webhook_url         text,
    webhook_events      text NOT NULL,
    execution_timeout_s double precision NOT NULL,
    max_attempts        integer NOT NULL,
    retention_s         double precision NOT NULL,
    traceparent         text NOT NULL,
    context             bytea NOT NULL,
    created_at          double precision NOT NULL,
    deadline_at         double precision,
    not_before          double precision NOT NULL DEFAULT 0,
    moved_at            double precision NOT NULL,
    started_at          double precision,
    finished_at         double precision,
    expires_at          double precision,
    attempts            integer NOT NULL DEFAULT 0,
    lost                integer NOT NULL DEFAULT 0,
    old_attempts        integer NOT NULL DEFAULT 0,
    old_lost            integer NOT NULL DEFAULT 0,
    retried             integer NOT NULL DEFAULT 0,
    owner               text NOT NULL DEFAULT '',
    lease_until         double precision,
    lease_call          bigint,
    instance            text NOT NULL DEFAULT '',
    output_type         text,
    output_data         bytea,
    output_blob         text,
    output_size         bigint,
    error               bytea,
    receipt             bytea,
    progress            bytea,
    reason              text NOT NULL DEFAULT ''
) WITH (
    -- Every job is updated a few times and then removed: leave room beside it, and clean up early.
    fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0
);
COMMENT ON COLUMN headrace.jobs.attempts IS 'Leases taken so far; the latest one''s number is its fence.';
COMMENT ON COLUMN headrace.jobs.old_attempts IS 'attempts at the last retry: max_attempts counts from there. old_lost likewise.';
COMMENT ON COLUMN headrace.jobs.rank IS 'Priority: 0 high, 1 normal, 2 low.';
COMMENT ON COLUMN headrace.jobs.moved_at IS 'When the state changed last.';
COMMENT ON COLUMN headrace.jobs.lease_call IS 'Which call took the lease: one that is repeated after a lost connection finds what it took.';

-- lease_until is in no index on purpose: a heartbeat then touches none (HOT).
CREATE UNIQUE INDEX jobs_idempotency ON headrace.jobs (project, endpoint, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_queue ON headrace.jobs (project, endpoint, rank, seq) WHERE state = 'queued';
CREATE INDEX jobs_running ON headrace.jobs (owner) WHERE state = 'running';
CREATE INDEX jobs_deadline ON headrace.jobs (deadline_at)
    WHERE deadline_at IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_expiry ON headrace.jobs (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX jobs_newest ON headrace.jobs (project, seq);
CREATE INDEX jobs_state ON headrace.jobs (project, endpoint, state, seq);
CREATE INDEX jobs_input_blob ON headrace.jobs (input_blob) WHERE input_blob <> '';
CREATE INDEX jobs_output_blob ON headrace.jobs (output_blob) WHERE output_blob <> '';

-- Jobs without what went in and came out, for lists.
CREATE VIEW headrace.job_heads AS
SELECT id, seq, project, endpoint, api, state, rank, version, method, path, key_id, input_type, ''::bytea AS input_data,
    input_blob, input_size, fingerprint, webhook_url, webhook_events, execution_timeout_s, max_attempts, retention_s,
    traceparent, context, created_at, deadline_at, started_at, finished_at, attempts, lost, retried, output_type,
    ''::bytea AS output_data, output_blob, output_size, error, receipt, progress, reason
FROM headrace.jobs;

-- Attempts that ended while the job went on; the latest one is in the job's own row.
CREATE TABLE headrace.attempts (
    job        text NOT NULL,
    number     integer NOT NULL,
    owner      text NOT NULL,
    started_at double precision NOT NULL,
    ended_at   double precision,
    instance   text NOT NULL,
    outcome    text NOT NULL,
    detail     text NOT NULL,
    PRIMARY KEY (job, number)
);

CREATE TABLE headrace.chunks (
    job     text NOT NULL,
    attempt integer NOT NULL,
    seq     integer NOT NULL,
    data    bytea NOT NULL,
    PRIMARY KEY (job, attempt, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- Webhook events. snapshot is the job at the event, without its input; the body is encoded from it.
CREATE TABLE headrace.deliveries (
    id         text PRIMARY KEY,
    job        text NOT NULL,
    event      text NOT NULL,
    url        text NOT NULL,
    snapshot   headrace.jobs NOT NULL,
    blob       text NOT NULL DEFAULT '',
    chunks     bytea[] NOT NULL DEFAULT '{}',
    tries      integer NOT NULL DEFAULT 0,
    created_at double precision NOT NULL,
    next_at    double precision,
    detail     text NOT NULL DEFAULT ''
);
COMMENT ON COLUMN headrace.deliveries.blob IS 'The output that the snapshot names.';
COMMENT ON COLUMN headrace.deliveries.next_at IS 'NULL: given up.';
CREATE INDEX deliveries_due ON headrace.deliveries (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX deliveries_job ON headrace.deliveries (job);
CREATE INDEX deliveries_blob ON headrace.deliveries (blob) WHERE blob <> '';

-- Blobs of removed jobs: offered for deletion some times (one that was put a moment ago is not deleted).
CREATE TABLE headrace.loose_blobs (
    blob    text PRIMARY KEY,
    next_at double precision NOT NULL DEFAULT 0,
    offers  integer NOT NULL DEFAULT 0
);
CREATE INDEX loose_blobs_next ON headrace.loose_blobs (next_at);

-- Counts are sums of changes, so that writers never wait for one another; sweeps fold them into one row.
CREATE TABLE headrace.counts (
    project  text NOT NULL,
    endpoint text NOT NULL,
    what     text NOT NULL,
    n        bigint NOT NULL,
    folded   boolean NOT NULL DEFAULT false
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
COMMENT ON COLUMN headrace.counts.what IS 'A state, retried, or (with an empty project) dropped: late results.';
CREATE INDEX counts_key ON headrace.counts (project, endpoint);
CREATE INDEX counts_changes ON headrace.counts (project, endpoint, what) WHERE NOT folded;

CREATE FUNCTION headrace.after_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO headrace.counts (project, endpoint, what, n)
    SELECT project, endpoint, state, count(*) FROM added GROUP BY project, endpoint, state;
    RETURN NULL;
END $$;

CREATE FUNCTION headrace.wants(events text, event text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT event = ANY (string_to_array(coalesce(nullif(events, ''), 'completed'), ','))
$$;

CREATE FUNCTION headrace.without_input(job headrace.jobs) RETURNS headrace.jobs LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    job.input_data := '';
    RETURN job;
END $$;

-- Every move of a job, whatever statement made it: counts, the attempt that ended, the webhook's event.
CREATE FUNCTION headrace.after_update() RETURNS trigger LANGUAGE plpgsql
    -- Rows of a statement have no index: without this a plan made for one row compares all with all.
    SET enable_hashjoin = on SET enable_nestloop = off AS $$
BEGIN
    INSERT INTO headrace.counts (project, endpoint, what, n)
    SELECT project, endpoint, what, sum(n) FROM (
        SELECT project, endpoint, state AS what, -1 AS n FROM before
        UNION ALL SELECT project, endpoint, state, 1 FROM after
        UNION ALL SELECT project, endpoint, 'retried', -retried FROM before WHERE retried > 0
        UNION ALL SELECT project, endpoint, 'retried', retried FROM after WHERE retried > 0
    ) AS changes GROUP BY project, endpoint, what HAVING sum(n) <> 0;

    INSERT INTO headrace.attempts (job, number, owner, started_at, ended_at, instance, outcome, detail)
    SELECT o.id, o.attempts, o.owner, o.started_at, coalesce(o.finished_at, a.moved_at), o.instance,
        CASE WHEN o.state = 'running' OR a.lost > o.lost THEN 'lost' ELSE o.state END,
        CASE WHEN o.state = 'running' THEN a.reason ELSE o.reason END
    FROM before o JOIN after a USING (id)
    WHERE (a.state = 'queued' AND o.state <> 'queued' OR a.lost > o.lost) AND o.started_at IS NOT NULL
    ON CONFLICT (job, number) DO NOTHING;

    DELETE FROM headrace.chunks c USING after a
    WHERE c.job = a.id AND c.attempt < a.attempts AND a.state = 'running' AND a.attempts > 1
        AND EXISTS (SELECT FROM before o WHERE o.id = a.id AND o.state = 'queued');
    DELETE FROM headrace.chunks c USING before o JOIN after a USING (id)
    WHERE c.job = a.id AND a.state = 'queued' AND o.state IN ('failed', 'timed_out');
    INSERT INTO headrace.loose_blobs (blob)
    SELECT DISTINCT o.output_blob FROM before o JOIN after a USING (id)
    WHERE o.output_blob <> '' AND a.output_blob IS DISTINCT FROM o.output_blob
    ON CONFLICT (blob) DO UPDATE SET next_at = 0, offers = 0;

    INSERT INTO headrace.deliveries (id, job, event, url, snapshot, blob, created_at, next_at)
    SELECT concat_ws('.', a.id, a.retried, a.event), a.id, a.event, a.webhook_url, headrace.without_input(j),
        coalesce(a.output_blob, ''), a.moved_at, a.moved_at
    FROM (SELECT *, CASE state WHEN 'running' THEN 'start' ELSE 'completed' END AS event FROM after
        WHERE webhook_url IS NOT NULL AND state <> 'queued') AS a
    JOIN before o ON o.id = a.id
    JOIN headrace.jobs j ON j.id = a.id
    WHERE a.state <> o.state AND headrace.wants(a.webhook_events, a.event)
        AND (a.state <> 'running' OR a.attempts = a.old_attempts + 1)
    ON CONFLICT (id) DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION headrace.after_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO headrace.counts (project, endpoint, what, n)
    SELECT project, endpoint, state, -count(*) FROM removed GROUP BY project, endpoint, state
    UNION ALL
    SELECT project, endpoint, 'retried', -sum(retried) FROM removed GROUP BY project, endpoint HAVING sum(retried) <> 0;
    DELETE FROM headrace.attempts a USING removed r WHERE a.job = r.id;
    DELETE FROM headrace.chunks c USING removed r WHERE c.job = r.id;
    DELETE FROM headrace.deliveries d USING removed r WHERE d.job = r.id AND d.next_at IS NULL;
    INSERT INTO headrace.loose_blobs (blob)
    SELECT input_blob FROM removed WHERE input_blob <> ''
    UNION
    SELECT output_blob FROM removed WHERE output_blob <> ''
    ORDER BY 1
    ON CONFLICT (blob) DO UPDATE SET next_at = 0, offers = 0;
    RETURN NULL;
END $$;

CREATE FUNCTION headrace.after_delivery() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO headrace.loose_blobs (blob) SELECT DISTINCT blob FROM removed WHERE blob <> '' ORDER BY 1
    ON CONFLICT (blob) DO UPDATE SET next_at = 0, offers = 0;
    RETURN NULL;
END $$;

CREATE TRIGGER jobs_after_insert AFTER INSERT ON headrace.jobs
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION headrace.after_insert();
CREATE TRIGGER jobs_after_update AFTER UPDATE ON headrace.jobs
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION headrace.after_update();
CREATE TRIGGER jobs_after_delete AFTER DELETE ON headrace.jobs
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION headrace.after_delete();
CREATE TRIGGER deliveries_after_delete AFTER DELETE ON headrace.deliveries
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION headrace.after_delivery();
