-- A lease says that a gateway has a job, these say that an instance has it. started_at is the lease's time.

ALTER TABLE jobs ADD COLUMN sent INTEGER NOT NULL DEFAULT 0;    -- the latest fence at which an instance may have begun
ALTER TABLE jobs ADD COLUMN sent_at REAL;                       -- of the latest attempt; NULL: no instance has it
ALTER TABLE jobs ADD COLUMN unsent INTEGER NOT NULL DEFAULT 0;  -- leases that were given back unused
ALTER TABLE jobs ADD COLUMN queued_at REAL;                     -- queued again; NULL: once only, when it was created
UPDATE jobs SET sent = attempts, sent_at = started_at WHERE attempts > 0;

DROP VIEW job_rows;
CREATE VIEW job_rows AS
SELECT seq, id, project, endpoint, state, rank, fingerprint, spec, notify, max_attempts, created_at, deadline_at,
       sent_at, finished_at, attempts, lost, retried, sent, unsent, queued_at, base_attempts, base_lost, lease_owner,
       lease_until, output, error, receipt, progress, reason,
       coalesce(input_data, (SELECT data FROM bodies WHERE job = seq AND kind = 0)) AS input_data,
       coalesce(output_data, (SELECT data FROM bodies WHERE job = seq AND kind = 1)) AS output_data
FROM jobs;
