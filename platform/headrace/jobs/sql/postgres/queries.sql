-- Every statement of the PostgreSQL job store, by name. The comment under a name says what it is for.
-- Those on many jobs take arrays, lock rows in the order of their ids (so that two gateways cannot deadlock),
-- and are one transaction each.

-- name: submit
-- Store new jobs, at the next turns of their keys; gives the ids of those that were not there (same id, or same
-- idempotency key). Two gateways that store jobs of one key at the same instant give them the same turns: they would
-- have to wait for one another to do better. Nothing is stored after $28, by the server's clock: nobody waits for it any
-- more, and its call may have run elsewhere. The last row is what that clock says.
WITH clock AS MATERIALIZED (
    SELECT extract(epoch FROM clock_timestamp())::float8 AS at
), stored AS (
INSERT INTO headrace.jobs (id, project, endpoint, api, rank, version, method, path, key_id, input_type, input_data,
    input_blob, input_size, idempotency_key, fingerprint, webhook_url, webhook_events, execution_timeout_s,
    max_attempts, retention_s, traceparent, context, created_at, deadline_at, ttl_s, moved_at, turn)
SELECT id, project, endpoint, api, rank, version, method, path, key_id, input_type, input_data, input_blob,
    input_size, idempotency_key, fingerprint, webhook_url, webhook_events, execution_timeout_s, max_attempts,
    retention_s, traceparent, context, created_at, deadline_at, deadline_at - created_at,
    created_at, nth + greatest(
        (SELECT t.turn FROM headrace.turns t
        WHERE t.project = new.project AND t.endpoint = new.endpoint AND t.rank = new.rank),
        (SELECT q.turn FROM headrace.jobs q WHERE q.project = new.project AND q.endpoint = new.endpoint
            AND q.rank = new.rank AND q.key_id = new.key_id AND q.state = 'queued' ORDER BY q.turn DESC LIMIT 1), 0)
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::text[], $8::text[],
    $9::text[], $10::text[], $11::bytea[], $12::text[], $13::bigint[], $14::text[], $15::text[], $16::text[],
    $17::text[], $18::float8[], $19::int[], $20::float8[], $21::text[], $22::bytea[], $23::float8[], $24::float8[],
    $25::int[])
    WITH ORDINALITY AS new (id, project, endpoint, api, rank, version, method, path, key_id, input_type, input_data,
    input_blob, input_size, idempotency_key, fingerprint, webhook_url, webhook_events, execution_timeout_s,
    max_attempts, retention_s, traceparent, context, created_at, deadline_at, nth, place)
WHERE (SELECT at FROM clock) < $28::float8
ORDER BY place
ON CONFLICT DO NOTHING
RETURNING id
), waiting AS (
    INSERT INTO headrace.waiters (id, job, owner)
    SELECT w.id, w.job, w.owner FROM unnest($1::text[], $26::text[], $27::text[]) AS w (job, owner, id)
    JOIN stored s ON s.id = w.job WHERE w.id IS NOT NULL
    ON CONFLICT (id) DO UPDATE SET job = excluded.job
)
SELECT id, NULL::float8 AS at FROM stored
UNION ALL
SELECT NULL, at FROM clock;

-- name: known
-- The job that stands in the way of a new one: the same idempotency key, or the same id.
SELECT *, true AS by_key FROM headrace.jobs WHERE project = $2 AND endpoint = $3 AND idempotency_key = $4
UNION ALL
SELECT *, false FROM headrace.jobs WHERE id = $1;

-- name: has_key
-- Whether there is a job that has an idempotency key.
SELECT EXISTS (SELECT FROM headrace.jobs WHERE project = $1 AND endpoint = $2 AND idempotency_key = $3);

-- name: wait_for
-- Somebody waits for a job that is there already, unless it has ended.
INSERT INTO headrace.waiters (id, job, owner)
SELECT $2, id, $3 FROM headrace.jobs WHERE id = $1 AND state IN ('queued', 'running')
ON CONFLICT (id) DO UPDATE SET job = excluded.job, owner = excluded.owner;

-- name: waiter_gone
-- Somebody does not wait any more.
DELETE FROM headrace.waiters WHERE id = $1 RETURNING job;

-- name: waiters_gone
-- All who waited at a gateway.
DELETE FROM headrace.waiters WHERE owner = $1;

-- name: waited_for
-- Lock a job: who comes to wait for it has done so, or comes after what is done now.
SELECT id FROM headrace.jobs WHERE id = $1 FOR UPDATE;

-- name: abandon
-- Cancel a locked job that nobody waits for, and let go of its idempotency key if $3.
UPDATE headrace.jobs j SET state = 'cancelled', finished_at = $2, moved_at = $2, expires_at = $2 + retention_s,
    lease_until = NULL, reason = $4, idempotency_key = CASE WHEN $3::boolean THEN NULL ELSE idempotency_key END
WHERE id = $1 AND state IN ('queued', 'running')
    AND NOT EXISTS (SELECT FROM headrace.waiters w WHERE w.job = j.id)
RETURNING *;

-- name: get
-- One job.
SELECT * FROM headrace.jobs WHERE id = $1 AND project = $2;

-- name: list
-- A page of a project's jobs before a seq, newest first, without what went in and came out.
SELECT * FROM headrace.job_heads
WHERE project = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3;

-- name: list_some
-- The same of some endpoints, or of some states: the newest of each endpoint and state that has any. What is leased,
-- and waits in a gateway, counts as queued.
SELECT j.* FROM (
    SELECT endpoint, what FROM headrace.counts
    WHERE project = $1 AND (cardinality($4::text[]) = 0 OR endpoint = ANY ($4)) AND what <> 'retried'
        AND (cardinality($5::text[]) = 0 OR what = ANY ($5) OR what = 'running' AND 'queued' = ANY ($5))
    GROUP BY endpoint, what HAVING sum(n) > 0) AS g
CROSS JOIN LATERAL (SELECT * FROM headrace.job_heads
    WHERE project = $1 AND endpoint = g.endpoint AND state = g.what AND seq < $2
        AND (g.what <> 'running' OR cardinality($5) = 0
            OR CASE WHEN sent_at IS NULL THEN 'queued' ELSE 'running' END = ANY ($5))
    ORDER BY seq DESC LIMIT $3) AS j
ORDER BY j.seq DESC LIMIT $3;

-- name: attempts
-- All attempts of a job: those that ended while it went on, and the latest, which is in the job's row.
SELECT number, owner, started_at, ended_at, instance, outcome, detail FROM headrace.attempts WHERE job = $1
UNION ALL
SELECT attempts, owner, started_at, finished_at, instance, CASE state WHEN 'running' THEN '' ELSE state END,
    CASE state WHEN 'running' THEN '' ELSE reason END
FROM headrace.jobs j
WHERE id = $1 AND attempts > 0 AND started_at IS NOT NULL AND state <> 'queued'
    AND NOT EXISTS (SELECT FROM headrace.attempts a WHERE a.job = j.id AND a.number = j.attempts)
ORDER BY number;

-- name: chunks
-- Chunks of the latest attempt: after a number when the reader's attempt is still that one, else all.
SELECT c.attempt, c.seq, c.data FROM headrace.jobs j
JOIN headrace.chunks c ON c.job = j.id AND c.attempt = j.attempts
WHERE j.id = $1 AND (j.attempts <> $2 OR c.seq > $3)
ORDER BY c.seq LIMIT $4;

-- name: cursor
-- How far a job's stream was taken, locked until the end of the transaction: two readers take turns.
INSERT INTO headrace.cursors (job, attempt, seq)
SELECT id, 0, -1 FROM headrace.jobs j
WHERE id = $1 AND EXISTS (SELECT FROM headrace.chunks c WHERE c.job = j.id AND c.attempt = j.attempts)
ON CONFLICT (job) DO UPDATE SET job = excluded.job
RETURNING attempt, seq, call, from_attempt, from_seq;

-- name: take
-- Chunks of the latest attempt behind a place ($2, $3), up to the one that fills $6 bytes, and the cursor moved behind
-- them.
WITH sizes AS (
    SELECT c.attempt, c.seq, octet_length(c.data) AS bytes FROM headrace.jobs j
    JOIN headrace.chunks c ON c.job = j.id AND c.attempt = j.attempts
    WHERE j.id = $1 AND (j.attempts <> $2 OR c.seq > $3)
    ORDER BY c.seq LIMIT $4
), items AS MATERIALIZED (
    SELECT c.attempt, c.seq, c.data
    FROM (SELECT attempt, seq, sum(bytes) OVER (ORDER BY seq) - bytes AS before FROM sizes) AS n
    JOIN headrace.chunks c ON c.job = $1 AND c.attempt = n.attempt AND c.seq = n.seq
    WHERE n.before < $6::bigint
), moved AS (
    UPDATE headrace.cursors r SET attempt = i.attempt, seq = i.seq, call = $5, from_attempt = $2, from_seq = $3
    FROM (SELECT attempt, max(seq) AS seq FROM items GROUP BY attempt) AS i WHERE r.job = $1
)
SELECT attempt, seq, data FROM items ORDER BY seq;

-- name: cancel
-- Cancel what is not final; its worker's fence is void from then on.
UPDATE headrace.jobs SET state = 'cancelled', finished_at = $3, moved_at = $3, expires_at = $3 + retention_s,
    lease_until = NULL, reason = 'Cancelled.'
WHERE id = $1 AND project = $2 AND state IN ('queued', 'running');

-- name: retry
-- Queue a failed or timed-out job again: with all its attempts, at the next turn of its key, and without its old end.
UPDATE headrace.jobs j SET turn = 1 + greatest(
        (SELECT t.turn FROM headrace.turns t
        WHERE t.project = j.project AND t.endpoint = j.endpoint AND t.rank = j.rank),
        (SELECT q.turn FROM headrace.jobs q WHERE q.project = j.project AND q.endpoint = j.endpoint
            AND q.rank = j.rank AND q.key_id = j.key_id AND q.state = 'queued' ORDER BY q.turn DESC LIMIT 1), 0),
    state = 'queued', moved_at = $3, not_before = $3, retried = retried + 1,
    old_attempts = attempts, old_lost = lost,
    deadline_at = $3 + ttl_s, finished_at = NULL, expires_at = NULL, started_at = NULL,
    sent_at = NULL, sent = 0, queued_at = $3,
    output_type = NULL, output_data = NULL, output_blob = NULL, output_size = NULL, error = NULL, receipt = NULL,
    progress = NULL, reason = ''
WHERE id = $1 AND project = $2 AND state IN ('failed', 'timed_out');

-- name: purge
-- Remove an endpoint's jobs that no instance has up to a seq, as many as given; of those leased after $5 the owner's
-- only, and not what a worker moves now.
DELETE FROM headrace.jobs WHERE id IN (
    SELECT id FROM headrace.jobs WHERE project = $1 AND endpoint = $2
        AND (state = 'queued' OR state = 'running' AND sent_at IS NULL AND (started_at <= $5 OR owner = $6))
        AND seq <= $3
    ORDER BY seq LIMIT $4 FOR UPDATE SKIP LOCKED);

-- name: purge_last
-- The youngest job of an endpoint that no instance has: a purge does not run after what comes meanwhile.
SELECT greatest(
    (SELECT max(seq) FROM headrace.jobs WHERE project = $1 AND endpoint = $2 AND state = 'queued'),
    (SELECT max(seq) FROM headrace.jobs WHERE project = $1 AND endpoint = $2 AND state = 'running' AND sent_at IS NULL));

-- name: unsent
-- Jobs of an endpoint that are leased and wait in a gateway.
SELECT count(*) FROM headrace.jobs WHERE project = $1 AND endpoint = $2 AND state = 'running' AND sent_at IS NULL;

-- name: counts
-- The sums of an endpoint's counts, and of how many rows.
SELECT what, sum(n)::bigint AS n, count(*) AS parts FROM headrace.counts
WHERE project = $1 AND endpoint = $2 GROUP BY what;

-- name: oldest
-- When the oldest queued job of an endpoint was submitted.
SELECT created_at FROM headrace.jobs WHERE project = $1 AND endpoint = $2 AND state = 'queued' ORDER BY seq LIMIT 1;

-- name: waiting
-- Endpoints with queued jobs: how many, since when the oldest waits, the rank of the next that may be leased, and how
-- many of high priority may be, to $3.
SELECT w.project, w.endpoint, w.n, o.created_at AS oldest,
    (SELECT j.rank FROM headrace.jobs j WHERE j.project = w.project AND j.endpoint = w.endpoint
        AND j.state = 'queued' AND j.not_before <= $2 ORDER BY j.rank, j.turn, j.seq LIMIT 1) AS best,
    (SELECT count(*) FROM (SELECT FROM headrace.jobs j WHERE j.project = w.project AND j.endpoint = w.endpoint
        AND j.state = 'queued' AND j.rank = 0 AND j.not_before <= $2 LIMIT $3) AS counted) AS high
FROM (
    SELECT project, endpoint, sum(n)::bigint AS n FROM headrace.counts WHERE what = 'queued'
    GROUP BY project, endpoint HAVING sum(n) > 0 LIMIT $1) AS w
CROSS JOIN LATERAL (SELECT created_at FROM headrace.jobs j WHERE j.project = w.project
    AND j.endpoint = w.endpoint AND j.state = 'queued' ORDER BY seq LIMIT 1) AS o;

-- name: lease
-- Take queued jobs, for several endpoints at once: high priority first, then by turn, then oldest; what another worker
-- has locked is passed over, also in moving the latest turn on.
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::float8[], $6::float8[], $7::bigint[])
        AS w (owner, project, endpoint, places, at, until, call)
), picked AS MATERIALIZED (
    SELECT q.*, w.owner, w.at, w.until, w.call FROM wanted w
    CROSS JOIN LATERAL (SELECT j.id, j.project, j.endpoint, j.rank, j.turn FROM headrace.jobs j
        WHERE j.project = w.project AND j.endpoint = w.endpoint AND j.state = 'queued' AND j.not_before <= w.at
            AND (j.deadline_at IS NULL OR j.deadline_at > w.at)
        ORDER BY j.rank, j.turn, j.seq LIMIT w.places FOR UPDATE OF j SKIP LOCKED) AS q
), latest AS MATERIALIZED (
    SELECT project, endpoint, rank, max(turn) AS turn FROM picked GROUP BY project, endpoint, rank
), ours AS MATERIALIZED (
    SELECT project, endpoint, rank, l.turn FROM latest l JOIN headrace.turns t USING (project, endpoint, rank)
    WHERE t.turn < l.turn FOR UPDATE OF t SKIP LOCKED
), moved AS (
    UPDATE headrace.turns t SET turn = o.turn FROM ours o
    WHERE t.project = o.project AND t.endpoint = o.endpoint AND t.rank = o.rank AND t.turn < o.turn
), first AS (
    INSERT INTO headrace.turns (project, endpoint, rank, turn)
    SELECT project, endpoint, rank, turn FROM latest l WHERE NOT EXISTS (SELECT FROM headrace.turns t
        WHERE t.project = l.project AND t.endpoint = l.endpoint AND t.rank = l.rank)
    ORDER BY project, endpoint, rank
    ON CONFLICT DO NOTHING
)
UPDATE headrace.jobs j SET state = 'running', owner = p.owner, lease_until = p.until, lease_call = p.call,
    started_at = p.at, moved_at = p.at, attempts = j.attempts + 1, instance = '', progress = NULL, sent_at = NULL
FROM picked p WHERE j.id = p.id
RETURNING j.*;

-- name: leased
-- What calls took whose answer was lost with the connection.
SELECT * FROM headrace.jobs
WHERE state = 'running' AND owner = ANY ($1::text[]) AND lease_call = ANY ($2::bigint[]);

-- name: unanswered
-- Lock jobs of a worker, which no instance has, that were leased by given calls.
SELECT j.id, j.state, j.owner, 0 AS counted, 0 AS lost, j.max_attempts, j.project, j.endpoint, j.created_at
FROM headrace.jobs j
WHERE j.owner = $1 AND j.state = 'running' AND j.sent_at IS NULL AND (j.project, j.endpoint, j.started_at) IN (
    SELECT project, endpoint, at FROM unnest($2::text[], $3::text[], $4::float8[]) AS c (project, endpoint, at))
ORDER BY j.id LIMIT $5 FOR UPDATE OF j SKIP LOCKED;

-- name: heartbeat
-- Prolong leases; gives the ids that are still the owner's.
WITH held AS MATERIALIZED (
    SELECT j.id FROM unnest($2::text[], $3::int[]) AS g (id, fence) JOIN headrace.jobs j ON j.id = g.id
    WHERE j.state = 'running' AND j.attempts = g.fence AND j.owner = $1
    ORDER BY j.id FOR UPDATE OF j)
UPDATE headrace.jobs j SET lease_until = $4 FROM held h WHERE j.id = h.id RETURNING j.id;

-- name: note
-- Record where attempts run, since when (0: not any more), and how far they are; gives the ids of those whose fence
-- holds.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::bytea[], $5::float8[])
        AS g (id, fence, instance, progress, sent_at)
), held AS MATERIALIZED (
    SELECT j.id, g.instance, g.progress, g.sent_at FROM given g JOIN headrace.jobs j ON j.id = g.id
    WHERE j.state = 'running' AND j.attempts = g.fence ORDER BY j.id FOR UPDATE OF j)
UPDATE headrace.jobs j SET instance = coalesce(nullif(h.instance, ''), j.instance),
    progress = coalesce(h.progress, j.progress),
    sent = CASE WHEN h.sent_at IS NULL THEN j.sent WHEN h.sent_at > 0 THEN j.attempts ELSE 0 END,
    sent_at = CASE WHEN h.sent_at IS NULL THEN j.sent_at ELSE nullif(h.sent_at, 0) END,
    reason = CASE WHEN h.sent_at > 0 THEN '' ELSE j.reason END
FROM held h WHERE j.id = h.id RETURNING j.id;

-- name: append
-- Append stream chunks of attempts whose fence holds, and queue their events; gives the ids of those.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::int[], $3::int[], $4::float8[]) AS g (id, fence, first, at)
), held AS MATERIALIZED (
    SELECT j.id, g.fence, g.first, g.at, j.started_at, j.retried, j.webhook_url, j.webhook_events
    FROM given g JOIN headrace.jobs j ON j.id = g.id
    WHERE j.state = 'running' AND j.attempts = g.fence ORDER BY j.id FOR NO KEY UPDATE OF j
), items AS MATERIALIZED (
    SELECT h.id, h.fence, c.seq, c.data FROM unnest($5::text[], $6::int[], $7::bytea[]) AS c (id, seq, data)
    JOIN held h ON h.id = c.id
), added AS (
    INSERT INTO headrace.chunks (job, attempt, seq, data) SELECT id, fence, seq, data FROM items
    ON CONFLICT (job, attempt, seq) DO NOTHING
), told AS (
    INSERT INTO headrace.deliveries (id, job, event, url, snapshot, chunks, created_at, next_at)
    SELECT concat_ws('.', h.id, h.retried, h.fence, 'output', h.first), h.id, 'output', h.webhook_url,
        headrace.without_input(j), ARRAY(SELECT i.data FROM items i WHERE i.id = h.id ORDER BY i.seq), h.at, h.started_at
    FROM held h JOIN headrace.jobs j ON j.id = h.id
    WHERE h.webhook_url IS NOT NULL AND EXISTS (SELECT FROM items i WHERE i.id = h.id) AND headrace.wants(h.webhook_events, 'output')
    ON CONFLICT (id) DO NOTHING
)
SELECT id FROM held;

-- name: finish
-- Store results of attempts whose fence holds, and give their ids. Others are late: counted, and dropped. $14: the
-- statement is repeated after a lost connection; what it stored the first time is no late result.
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::bigint[],
        $8::bytea[], $9::bytea[], $10::text[], $11::float8[], $12::text[], $13::float8[])
        AS g (id, fence, state, output_type, output_data, output_blob, output_size, error, receipt, reason, sent_at,
            instance, at)
), held AS MATERIALIZED (
    SELECT j.id FROM given g JOIN headrace.jobs j ON j.id = g.id
    WHERE j.state = 'running' AND j.attempts = g.fence ORDER BY j.id FOR UPDATE OF j
), stored AS (
    UPDATE headrace.jobs j SET state = g.state, finished_at = g.at, moved_at = g.at,
        expires_at = g.at + j.retention_s, lease_until = NULL, output_type = g.output_type,
        output_data = g.output_data, output_blob = g.output_blob, output_size = g.output_size, error = g.error,
        receipt = g.receipt, reason = g.reason, sent_at = coalesce(g.sent_at, j.sent_at),
        sent = CASE WHEN g.sent_at IS NULL THEN j.sent ELSE j.attempts END,
        instance = coalesce(nullif(g.instance, ''), j.instance)
    FROM held h JOIN given g ON g.id = h.id WHERE j.id = h.id
    RETURNING j.id
), before AS (
    SELECT j.id FROM given g JOIN headrace.jobs j ON j.id = g.id
    WHERE $14::boolean AND j.attempts = g.fence AND j.state = g.state AND j.finished_at = g.at
), late AS MATERIALIZED (
    SELECT g.id, g.fence FROM given g WHERE NOT EXISTS (SELECT FROM stored s WHERE s.id = g.id)
        AND NOT EXISTS (SELECT FROM before b WHERE b.id = g.id)
), fenced AS (
    UPDATE headrace.attempts a SET outcome = 'fenced' FROM late l
    WHERE a.job = l.id AND a.number = l.fence AND a.outcome = 'lost'
), loose AS (
    INSERT INTO headrace.loose_blobs (blob) SELECT DISTINCT g.output_blob FROM given g JOIN late l ON l.id = g.id
    WHERE g.output_blob <> '' ORDER BY 1
    ON CONFLICT (blob) DO UPDATE SET next_at = 0, offers = 0
), counted AS (
    INSERT INTO headrace.counts (project, endpoint, what, n)
    SELECT '', '', 'dropped', count(*) FROM late HAVING count(*) > 0
)
SELECT id FROM stored UNION ALL SELECT id FROM before;

-- name: held
-- Lock jobs whose fence holds, to move them; with their attempts since the submission or the last retry.
SELECT j.id, j.state, j.owner, j.attempts - j.old_attempts - j.lost + j.old_lost AS counted, j.lost - j.old_lost AS lost,
    j.max_attempts, j.project, j.endpoint, j.created_at
FROM unnest($1::text[], $2::int[]) AS g (id, fence) JOIN headrace.jobs j ON j.id = g.id
WHERE j.state = 'running' AND j.attempts = g.fence ORDER BY j.id FOR UPDATE OF j;

-- name: owned
-- Lock jobs of a worker that is gone.
SELECT id, state, owner, attempts - old_attempts - lost + old_lost AS counted, lost - old_lost AS lost, max_attempts,
    project, endpoint, created_at
FROM headrace.jobs WHERE owner = $1 AND state = 'running' ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED;

-- name: silent
-- Lock jobs whose worker was not heard of in time. Running ones are few: no index on lease_until.
SELECT id, state, owner, attempts - old_attempts - lost + old_lost AS counted, lost - old_lost AS lost, max_attempts,
    project, endpoint, created_at
FROM headrace.jobs WHERE state = 'running' AND lease_until <= $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED;

-- name: past_deadline
-- Lock jobs that have not ended in their time to live.
SELECT id, state, owner, 0 AS counted, 0 AS lost, max_attempts, project, endpoint, created_at
FROM headrace.jobs WHERE finished_at IS NULL AND deadline_at <= $1 ORDER BY deadline_at LIMIT $2 FOR UPDATE SKIP LOCKED;

-- name: move
-- Queue locked jobs again, or end them without a result.
UPDATE headrace.jobs j SET state = g.state, moved_at = g.at, not_before = g.at + g.delay,
    reason = coalesce(nullif(g.reason, ''), j.reason), lost = j.lost + g.lost, lease_until = NULL, error = g.error,
    unsent = j.unsent + g.unsent, old_attempts = j.old_attempts + g.unsent,
    sent_at = CASE WHEN g.state = 'queued' THEN NULL ELSE j.sent_at END,
    queued_at = CASE WHEN g.state = 'queued' AND g.unsent = 0 THEN g.at ELSE j.queued_at END,
    owner = CASE WHEN g.state = 'queued' THEN '' ELSE j.owner END,
    started_at = CASE WHEN g.state = 'queued' THEN NULL ELSE j.started_at END,
    finished_at = CASE WHEN g.state = 'queued' THEN NULL ELSE g.at END,
    expires_at = CASE WHEN g.state = 'queued' THEN NULL ELSE g.at + j.retention_s END
FROM unnest($1::text[], $2::text[], $3::float8[], $4::float8[], $5::text[], $6::int[], $7::bytea[], $8::int[])
    AS g (id, state, at, delay, reason, lost, error, unsent)
WHERE j.id = g.id;

-- name: remove
-- What was kept long enough after its end.
DELETE FROM headrace.jobs WHERE id IN (SELECT id FROM headrace.jobs WHERE expires_at <= $1
    ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED);

-- name: blob_later
-- A blob that has no name yet: to be offered when it still has none then.
INSERT INTO headrace.loose_blobs (blob, next_at) VALUES ($1, $2)
ON CONFLICT (blob) DO UPDATE SET next_at = excluded.next_at, offers = 0;

-- name: named_blobs
-- Forget loose blobs that a job names after all, and those that were offered often enough.
DELETE FROM headrace.loose_blobs WHERE blob IN (
    SELECT blob FROM headrace.loose_blobs b WHERE next_at <= $1 AND (offers >= $2
        OR EXISTS (SELECT FROM headrace.jobs WHERE input_blob = b.blob AND input_blob <> '')
        OR EXISTS (SELECT FROM headrace.jobs WHERE output_blob = b.blob AND output_blob <> '')
        OR EXISTS (SELECT FROM headrace.deliveries d WHERE d.blob = b.blob AND d.blob <> ''))
    ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED);

-- name: loose_blobs
-- Blobs that nothing names any more, to be deleted; offered again later, in case that deletion was missed.
UPDATE headrace.loose_blobs SET next_at = $2, offers = offers + 1 WHERE blob IN (
    SELECT blob FROM headrace.loose_blobs b WHERE next_at <= $1
        AND NOT EXISTS (SELECT FROM headrace.jobs WHERE input_blob = b.blob AND input_blob <> '')
        AND NOT EXISTS (SELECT FROM headrace.jobs WHERE output_blob = b.blob AND output_blob <> '')
        AND NOT EXISTS (SELECT FROM headrace.deliveries d WHERE d.blob = b.blob AND d.blob <> '')
    ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING blob;

-- name: fold
-- Put the changes of counts together, one row per count; one gateway at a time.
WITH mine AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock($1) AS ok
), taken AS MATERIALIZED (
    SELECT DISTINCT project, endpoint FROM (
        SELECT project, endpoint FROM headrace.counts WHERE NOT folded AND (SELECT ok FROM mine) LIMIT $2) AS few
), gone AS (
    DELETE FROM headrace.counts c USING taken t WHERE c.project = t.project AND c.endpoint = t.endpoint
    RETURNING c.project, c.endpoint, c.what, c.n
)
INSERT INTO headrace.counts (project, endpoint, what, n, folded)
SELECT project, endpoint, what, sum(n), true FROM gone GROUP BY project, endpoint, what HAVING sum(n) <> 0;

-- name: dropped
-- Late results that were dropped.
SELECT coalesce(sum(n), 0)::bigint FROM headrace.counts WHERE project = '' AND endpoint = '' AND what = 'dropped';

-- name: due
-- Take webhooks that are due; they come again unless settled.
UPDATE headrace.deliveries SET next_at = $2, tries = tries + 1
WHERE id IN (SELECT id FROM headrace.deliveries WHERE next_at <= $1 ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING id, job, event, url, snapshot, chunks, tries, created_at;

-- name: delivered
-- Forget a webhook event that was delivered.
DELETE FROM headrace.deliveries WHERE id = $1;

-- name: undelivered
-- Try a webhook event again, or (NULL) never: then it goes with its job.
UPDATE headrace.deliveries SET next_at = $2, detail = $3 WHERE id = $1;

-- name: given_up
-- A webhook event that was given up, and whose job is gone already.
DELETE FROM headrace.deliveries d WHERE id = $1 AND next_at IS NULL
    AND NOT EXISTS (SELECT FROM headrace.jobs j WHERE j.id = d.job);

-- name: job_deliveries
-- Webhook events of a job that were not delivered, oldest first.
SELECT event, tries, created_at, next_at, detail FROM headrace.deliveries WHERE job = $1 ORDER BY created_at, id;

-- name: notify
-- Tell the other gateways; not worth a sync to disk.
SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, payload) FROM unnest($2::text[]) AS p (payload);
