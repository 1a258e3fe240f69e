-- A lease says that a gateway has a job, these say that an instance has it. started_at is the lease's time.

-- Without defaults at first: deliveries hold rows of this table as a type.
ALTER TABLE headrace.jobs ADD COLUMN sent integer, ADD COLUMN sent_at double precision, ADD COLUMN unsent integer,
    ADD COLUMN queued_at double precision;
UPDATE headrace.jobs SET sent = attempts, sent_at = started_at, unsent = 0;
ALTER TABLE headrace.jobs ALTER COLUMN sent SET DEFAULT 0, ALTER COLUMN sent SET NOT NULL,
    ALTER COLUMN unsent SET DEFAULT 0, ALTER COLUMN unsent SET NOT NULL;
COMMENT ON COLUMN headrace.jobs.sent IS 'The latest fence at which an instance may have begun, since the last retry.';
COMMENT ON COLUMN headrace.jobs.sent_at IS 'Since when an instance has it, or had it in the last attempt; NULL: none has.';
COMMENT ON COLUMN headrace.jobs.unsent IS 'Leases that were given back before any instance had the job.';
COMMENT ON COLUMN headrace.jobs.queued_at IS 'When it was queued again; NULL: once only, when it was created.';

CREATE OR REPLACE VIEW headrace.job_heads AS
SELECT id, seq, project, endpoint, api, state, rank, version, method, path, key_id, input_type, ''::bytea AS input_data,
    input_blob, input_size, fingerprint, webhook_url, webhook_events, execution_timeout_s, max_attempts, retention_s,
    traceparent, context, created_at, deadline_at, started_at, finished_at, attempts, lost, retried, output_type,
    ''::bytea AS output_data, output_blob, output_size, error, receipt, progress, reason,
    sent, sent_at, unsent, queued_at
FROM headrace.jobs;

-- As before, but that a lease which was given back unused is no attempt.
CREATE OR REPLACE FUNCTION headrace.after_update() RETURNS trigger LANGUAGE plpgsql
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
        AND a.unsent = o.unsent
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
