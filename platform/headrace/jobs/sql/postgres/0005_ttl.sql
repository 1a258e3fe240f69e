-- The time to live as it was asked for: every retry gives it anew.

ALTER TABLE headrace.jobs ADD COLUMN ttl_s double precision;
UPDATE headrace.jobs SET ttl_s = deadline_at - created_at WHERE deadline_at IS NOT NULL;
