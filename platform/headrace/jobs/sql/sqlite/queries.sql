-- Every statement of the SQLite job store, by name. The comment under a name says what it is for.
-- Those that give jobs give `sqlite_rows.JobRow`: seq, the columns of a job, input's and output's data.

-- name: job_insert
-- Store a new job, at the next turn of its key; changes nothing when its id or its idempotency key is taken.
INSERT INTO jobs (id, project, endpoint, state, rank, key_id, idempotency_key, fingerprint, spec, notify, max_attempts,
                  retention_s, input_data, input_blob, created_at, ttl_s, deadline_at, available_at, moved_at, turn)
VALUES (:id, :project, :endpoint, 'queued', :rank, :key_id, :idempotency_key, :fingerprint, :spec, :notify,
        :max_attempts, :retention_s, :input_data, :input_blob, :now, :ttl_s, :now + :ttl_s, :now, :now,
        1 + max(coalesce((SELECT turn FROM turns
                          WHERE project = :project AND endpoint = :endpoint AND rank = :rank), 0),
                coalesce((SELECT turn FROM jobs INDEXED BY jobs_turns
                          WHERE project = :project AND endpoint = :endpoint AND rank = :rank AND key_id = :key_id
                            AND state = 'queued' ORDER BY turn DESC LIMIT 1), 0)))
ON CONFLICT DO NOTHING;

-- name: body_put
-- Keep a body of middle size beside its job; kind 0 is the input, 1 the output.
INSERT OR REPLACE INTO bodies (job, kind, data) VALUES (:seq, :kind, :data);

-- name: job_get
-- One job of a project, with its bodies.
SELECT seq, id, project, endpoint, state, rank, fingerprint, spec, created_at, deadline_at, sent_at, finished_at,
       attempts, lost, retried, sent, unsent, queued_at, output, error, receipt, progress, reason, input_data, output_data
FROM job_rows WHERE id = :id AND project = :project;

-- name: job_get_any
-- One job by id, whoever it belongs to.
SELECT seq, id, project, endpoint, state, rank, fingerprint, spec, created_at, deadline_at, sent_at, finished_at,
       attempts, lost, retried, sent, unsent, queued_at, output, error, receipt, progress, reason, input_data, output_data
FROM job_rows WHERE id = :id;

-- name: job_get_key
-- The job that has an idempotency key.
SELECT seq, id, project, endpoint, state, rank, fingerprint, spec, created_at, deadline_at, sent_at, finished_at,
       attempts, lost, retried, sent, unsent, queued_at, output, error, receipt, progress, reason, input_data, output_data
FROM job_rows
WHERE seq = (SELECT seq FROM jobs
             WHERE project = :project AND endpoint = :endpoint AND idempotency_key = :idempotency_key);

-- name: job_has_key
-- Whether there is a job that has an idempotency key.
SELECT 1 FROM jobs WHERE project = :project AND endpoint = :endpoint AND idempotency_key = :idempotency_key;

-- name: jobs_get_seqs
-- Jobs by a JSON list of their seq, with their bodies; for a lease that was just taken.
SELECT seq, id, project, endpoint, state, rank, fingerprint, spec, created_at, deadline_at, sent_at, finished_at,
       attempts, lost, retried, sent, unsent, queued_at, output, error, receipt, progress, reason, input_data, output_data
FROM job_rows WHERE seq IN (SELECT value FROM json_each(:seqs));

-- name: list_project
-- A page of a project's jobs before a seq, newest first, without the data of bodies.
SELECT seq, id, project, endpoint, state, rank, fingerprint, spec, created_at, deadline_at, sent_at, finished_at,
       attempts, lost, retried, sent, unsent, queued_at, output, error, receipt, progress, reason, NULL, NULL
FROM jobs INDEXED BY jobs_project
WHERE project = :project AND seq < :before ORDER BY seq DESC LIMIT :limit;

-- name: list_state
-- A page of one endpoint's jobs in one state before a seq, newest first, without the data of bodies. :sent is 1 for those
-- that an instance has only, 0 for the others only, NULL for all.
SELECT seq, id, project, endpoint, state, rank, fingerprint, spec, created_at, deadline_at, sent_at, finished_at,
       attempts, lost, retried, sent, unsent, queued_at, output, error, receipt, progress, reason, NULL, NULL
FROM jobs INDEXED BY jobs_state
WHERE project = :project AND endpoint = :endpoint AND state = :state AND seq < :before
  AND (:sent IS NULL OR (sent_at IS NOT NULL) = :sent)
ORDER BY seq DESC LIMIT :limit;

-- name: list_groups
-- Which endpoints of a project have jobs in which states.
SELECT endpoint, state FROM counters WHERE project = :project AND n > 0 AND state <> 'retried';

-- name: attempts
-- All attempts of a job, oldest first.
SELECT number, owner, started_at, ended_at, instance, outcome, detail FROM attempts
WHERE job = (SELECT seq FROM jobs WHERE id = :id) ORDER BY number;

-- name: chunks
-- Chunks of the latest attempt: after :after when :attempt is still that one, else from the first.
SELECT c.attempt, c.seq, c.data FROM jobs j JOIN chunks c ON c.job = j.seq AND c.attempt = j.attempts
WHERE j.id = :id AND c.seq > CASE WHEN j.attempts = :attempt THEN :after ELSE -1 END
ORDER BY c.seq LIMIT :limit;

-- name: chunks_untaken
-- Chunks of the latest attempt behind those that were taken, with the job's seq.
SELECT c.attempt, c.seq, c.data, j.seq FROM jobs j JOIN chunks c ON c.job = j.seq AND c.attempt = j.attempts
LEFT JOIN cursors r ON r.job = j.seq
WHERE j.id = :id AND c.seq > CASE WHEN r.attempt = j.attempts THEN r.seq ELSE -1 END
ORDER BY c.seq LIMIT :limit;

-- name: cursor_put
-- How far a job's stream was taken.
INSERT INTO cursors (job, attempt, seq) VALUES (:job, :attempt, :seq)
ON CONFLICT (job) DO UPDATE SET attempt = excluded.attempt, seq = excluded.seq;

-- name: job_cancel
-- Cancel a job that has not ended; a worker's fence is void then.
UPDATE jobs SET state = 'cancelled', moved_at = :now, finished_at = :now, expires_at = :now + retention_s,
                lease_owner = NULL, lease_until = NULL, reason = 'Cancelled.'
WHERE id = :id AND project = :project AND state IN ('queued', 'running')
RETURNING seq, notify;

-- name: waiter_put
-- Somebody waits for a job.
INSERT INTO waiters (id, job, owner) VALUES (:waiter, :seq, :waits_at)
ON CONFLICT (id) DO UPDATE SET job = excluded.job, owner = excluded.owner;

-- name: waiter_gone
-- Somebody does not wait any more.
DELETE FROM waiters WHERE id = :waiter RETURNING job;

-- name: waiters_gone
-- All who waited at a gateway.
DELETE FROM waiters WHERE owner = :owner;

-- name: abandon
-- Cancel a job that nobody waits for, and let go of its idempotency key if :free_key is 1.
UPDATE jobs SET state = 'cancelled', moved_at = :now, finished_at = :now, expires_at = :now + retention_s,
                lease_owner = NULL, lease_until = NULL, reason = :reason,
                idempotency_key = CASE WHEN :free_key THEN NULL ELSE idempotency_key END
WHERE seq = :seq AND state IN ('queued', 'running')
  AND NOT EXISTS (SELECT 1 FROM waiters WHERE waiters.job = jobs.seq)
RETURNING seq, notify;

-- name: job_retry
-- Queue a dead job again, with attempts, time to live and turn anew.
UPDATE jobs SET turn = 1 + max(coalesce((SELECT t.turn FROM turns t
                                         WHERE t.project = jobs.project AND t.endpoint = jobs.endpoint
                                           AND t.rank = jobs.rank), 0),
                               coalesce((SELECT q.turn FROM jobs q INDEXED BY jobs_turns
                                         WHERE q.project = jobs.project AND q.endpoint = jobs.endpoint
                                           AND q.rank = jobs.rank AND q.key_id = jobs.key_id AND q.state = 'queued'
                                         ORDER BY q.turn DESC LIMIT 1), 0)),
                state = 'queued', moved_at = :now, available_at = :now, retried = retried + 1,
                base_attempts = attempts, base_lost = lost, deadline_at = :now + ttl_s,
                started_at = NULL, sent_at = NULL, sent = 0, queued_at = :now, finished_at = NULL, expires_at = NULL, output = NULL, output_data = NULL,
                output_blob = NULL, error = NULL, receipt = NULL, progress = NULL, reason = ''
WHERE id = :id AND project = :project AND state IN ('failed', 'timed_out')
RETURNING seq, notify;

-- name: purge_last
-- The youngest job of an endpoint that no instance has: a purge does not run after what comes meanwhile.
SELECT max(seq) FROM jobs INDEXED BY jobs_state
WHERE project = :project AND endpoint = :endpoint AND (state = 'queued' OR state = 'running' AND sent_at IS NULL);

-- name: purge_some
-- Remove some jobs of an endpoint up to a seq that no instance has; of those leased after :noted the owner's only.
DELETE FROM jobs WHERE seq IN (
    SELECT seq FROM jobs INDEXED BY jobs_state
    WHERE project = :project AND endpoint = :endpoint
      AND (state = 'queued' OR state = 'running' AND sent_at IS NULL AND (started_at <= :noted OR lease_owner = :owner))
      AND seq <= :last LIMIT :limit);

-- name: counts
-- Jobs of one endpoint by state.
SELECT state, n FROM counters WHERE project = :project AND endpoint = :endpoint;

-- name: unsent
-- Jobs of one endpoint that are leased and wait in a gateway.
SELECT count(*) FROM jobs INDEXED BY jobs_state
WHERE project = :project AND endpoint = :endpoint AND state = 'running' AND sent_at IS NULL;

-- name: oldest_queued
-- When the oldest queued job of an endpoint was created.
SELECT created_at FROM jobs INDEXED BY jobs_state
WHERE project = :project AND endpoint = :endpoint AND state = 'queued' ORDER BY seq LIMIT 1;

-- name: waiting
-- Endpoints with queued jobs.
SELECT project, endpoint, n FROM counters WHERE state = 'queued' AND n > 0 LIMIT :limit;

-- name: waiting_of
-- Of an endpoint with queued jobs: when the oldest was created, the rank of the next that may be leased, and how many of
-- high priority may be, to :counted.
SELECT (SELECT created_at FROM jobs INDEXED BY jobs_state
        WHERE project = :project AND endpoint = :endpoint AND state = 'queued' ORDER BY seq LIMIT 1),
       (SELECT rank FROM jobs INDEXED BY jobs_queue
        WHERE project = :project AND endpoint = :endpoint AND state = 'queued' AND available_at <= :now
        ORDER BY rank, turn, seq LIMIT 1),
       (SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY jobs_queue
        WHERE project = :project AND endpoint = :endpoint AND state = 'queued' AND rank = 0 AND available_at <= :now
        LIMIT :counted));

-- name: lease
-- Take queued jobs, high priority first, then by turn, then oldest.
UPDATE jobs SET state = 'running', attempts = attempts + 1, lease_owner = :owner, lease_until = :until,
                started_at = :now, moved_at = :now, sent_at = NULL
WHERE seq IN (
    SELECT seq FROM jobs INDEXED BY jobs_queue
    WHERE project = :project AND endpoint = :endpoint AND state = 'queued' AND available_at <= :now
      AND (deadline_at IS NULL OR deadline_at > :now)
    ORDER BY rank, turn, seq LIMIT :limit)
RETURNING seq, notify, attempts - base_attempts, rank, turn;

-- name: turn_put
-- The latest turn of a priority that was leased: never back.
INSERT INTO turns (project, endpoint, rank, turn) VALUES (:project, :endpoint, :rank, :turn)
ON CONFLICT (project, endpoint, rank) DO UPDATE SET turn = excluded.turn WHERE turns.turn < excluded.turn;

-- name: unanswered
-- Running jobs of one worker, which no instance has, that one call leased.
SELECT id, attempts FROM jobs INDEXED BY jobs_owner
WHERE lease_owner = :owner AND state = 'running' AND sent_at IS NULL
  AND project = :project AND endpoint = :endpoint AND started_at = :at;

-- name: heartbeat
-- Prolong one lease.
UPDATE jobs SET lease_until = :until
WHERE id = :id AND state = 'running' AND attempts = :fence AND lease_owner = :owner;

-- name: fence_valid
-- Whether an attempt still holds the job: its seq, and what the webhook wants to hear.
SELECT seq, notify FROM jobs WHERE id = :id AND state = 'running' AND attempts = :fence;

-- name: note_instance
-- Where an attempt runs.
UPDATE attempts SET instance = :instance WHERE job = :seq AND number = :fence;

-- name: note_sent
-- An instance has the job, or (0) has it no more, since it refused it.
UPDATE jobs SET sent = CASE WHEN :sent_at > 0 THEN attempts ELSE 0 END, sent_at = nullif(:sent_at, 0),
                reason = CASE WHEN :sent_at > 0 THEN '' ELSE reason END
WHERE seq = :seq;

-- name: note_progress
-- What a handler told of its progress.
UPDATE jobs SET progress = :progress WHERE seq = :seq;

-- name: chunk_put
-- One item of an attempt's stream; a repeated one is the same.
INSERT OR REPLACE INTO chunks (job, attempt, seq, data) VALUES (:job, :attempt, :seq, :data);

-- name: finish
-- Store a result, when the fence is valid.
UPDATE jobs SET state = :state, moved_at = :now, finished_at = :now, expires_at = :now + retention_s,
                lease_owner = NULL, lease_until = NULL, output = :output, output_data = :output_data,
                output_blob = :output_blob, error = :error, receipt = :receipt, reason = :reason,
                sent_at = coalesce(:started_at, sent_at),
                sent = CASE WHEN :started_at IS NULL THEN sent ELSE attempts END
WHERE id = :id AND state = 'running' AND attempts = :fence
RETURNING seq, notify;

-- name: fenced
-- A result of an attempt that had lost its lease came late.
UPDATE attempts SET outcome = 'fenced'
WHERE job = (SELECT seq FROM jobs WHERE id = :id) AND number = :fence AND outcome = 'lost';

-- name: orphan_put
-- A blob that may have no name.
INSERT OR REPLACE INTO orphans (blob, next_at, offers) VALUES (:blob, 0, 0);

-- name: orphan_later
-- A blob that has no name yet: to be offered when it still has none at :next_at.
INSERT INTO orphans (blob, next_at, offers) VALUES (:blob, :next_at, 0)
ON CONFLICT (blob) DO UPDATE SET next_at = excluded.next_at, offers = 0;

-- name: release
-- Queue a running job again; :lost is 1 when that was through no fault of its own.
UPDATE jobs SET state = 'queued', moved_at = :now, available_at = :now + :delay_s, lost = lost + :lost,
                started_at = NULL, sent_at = NULL, queued_at = :now, lease_owner = NULL, lease_until = NULL, reason = :reason
WHERE seq = :seq AND state = 'running';

-- name: give_back
-- Queue a running job again that no instance had: its lease does not count, in its place and with its reason.
UPDATE jobs SET state = 'queued', moved_at = :now, available_at = :now + :delay_s, unsent = unsent + 1,
                base_attempts = base_attempts + 1, started_at = NULL, sent_at = NULL, lease_owner = NULL,
                lease_until = NULL, reason = coalesce(nullif(:reason, ''), reason)
WHERE seq = :seq AND state = 'running';

-- name: no_attempt
-- A lease that was given back unused is no attempt.
DELETE FROM attempts WHERE job = :seq AND number = :fence;

-- name: die
-- End a running job that has no attempt left.
UPDATE jobs SET state = 'failed', moved_at = :now, finished_at = :now, expires_at = :now + retention_s,
                lost = lost + :lost, lease_owner = NULL, lease_until = NULL, error = :error, reason = :reason
WHERE seq = :seq AND state = 'running' RETURNING project, endpoint, state, created_at;

-- name: budget
-- Attempts of the running job at a fence: seq, those that count, those that were lost, how many may count, and what
-- the webhook wants to hear.
SELECT seq, (attempts - base_attempts) - (lost - base_lost), lost - base_lost, max_attempts, notify
FROM jobs WHERE id = :id AND state = 'running' AND attempts = :fence;

-- name: owned
-- Running jobs of one worker.
SELECT id, attempts FROM jobs INDEXED BY jobs_owner
WHERE lease_owner = :owner AND state = 'running' LIMIT :limit;

-- name: expired_leases
-- Running jobs whose worker has not been heard of in time.
SELECT id, attempts, lease_owner FROM jobs INDEXED BY jobs_lease
WHERE state = 'running' AND lease_until <= :now ORDER BY lease_until LIMIT :limit;

-- name: past_deadline
-- Jobs that have not ended in their time to live.
SELECT seq, state, notify FROM jobs INDEXED BY jobs_deadline
WHERE deadline_at IS NOT NULL AND finished_at IS NULL AND deadline_at <= :now ORDER BY deadline_at LIMIT :limit;

-- name: time_out
-- End a job that is past its deadline.
UPDATE jobs SET state = 'timed_out', moved_at = :now, finished_at = :now, expires_at = :now + retention_s,
                lease_owner = NULL, lease_until = NULL, error = :error, reason = :reason
WHERE seq = :seq AND state IN ('queued', 'running') RETURNING project, endpoint, state, created_at;

-- name: remove_expired
-- Remove jobs that are past their retention.
DELETE FROM jobs WHERE seq IN (
    SELECT seq FROM jobs INDEXED BY jobs_expiry
    WHERE expires_at IS NOT NULL AND expires_at <= :now ORDER BY expires_at LIMIT :limit);

-- name: orphans_due
-- Blobs to be offered now, with whether something names them.
SELECT o.blob, o.offers,
       EXISTS (SELECT 1 FROM jobs WHERE input_blob = o.blob AND input_blob IS NOT NULL)
       OR EXISTS (SELECT 1 FROM jobs WHERE output_blob = o.blob AND output_blob IS NOT NULL)
       OR EXISTS (SELECT 1 FROM deliveries WHERE deliveries.blob = o.blob AND deliveries.blob IS NOT NULL)
FROM orphans o WHERE o.next_at <= :now LIMIT :limit;

-- name: orphan_again
-- Offer a blob once more, later.
UPDATE orphans SET next_at = :next_at, offers = offers + 1 WHERE blob = :blob;

-- name: orphan_delete
-- Named again, or offered often enough.
DELETE FROM orphans WHERE blob = :blob;

-- name: delivery_put
-- Queue a webhook event; the same one is queued once.
INSERT INTO deliveries (id, job, project, event, url, body, blob, created_at, next_at)
VALUES (:id, :job, :project, :event, :url, :body, :blob, :created_at, :next_at)
ON CONFLICT DO NOTHING;

-- name: deliveries_due
-- Take webhook events that are due; they come again at :until.
UPDATE deliveries SET next_at = :until, tries = tries + 1
WHERE id IN (SELECT id FROM deliveries INDEXED BY deliveries_due
             WHERE next_at IS NOT NULL AND next_at <= :now ORDER BY next_at LIMIT :limit)
RETURNING id, job, project, event, url, body, tries, created_at;

-- name: delivery_done
-- Forget a webhook event that was delivered.
DELETE FROM deliveries WHERE id = :id;

-- name: delivery_next
-- Try a webhook event again at :next_at, or (NULL) never.
UPDATE deliveries SET next_at = :next_at, detail = :detail WHERE id = :id;

-- name: delivery_given_up
-- A webhook event that was given up goes with its job; without one it goes at once.
DELETE FROM deliveries WHERE id = :id AND next_at IS NULL AND
  NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = deliveries.job);

-- name: job_deliveries
-- Webhook events of a job that were not delivered, oldest first.
SELECT event, tries, created_at, next_at, detail FROM deliveries WHERE job = :job ORDER BY created_at, id;

-- name: meta_add
-- Add one to a counter of the store.
INSERT INTO meta (key, value) VALUES (:key, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1;

-- name: meta_get
-- A counter of the store.
SELECT value FROM meta WHERE key = :key;
