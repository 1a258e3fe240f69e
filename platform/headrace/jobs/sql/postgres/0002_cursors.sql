-- How far the stream of a job was taken (`JobStore.take_chunks`): by all gateways, and over their restarts.

CREATE TABLE headrace.cursors (
    job          text PRIMARY KEY REFERENCES headrace.jobs ON DELETE CASCADE,
    attempt      integer NOT NULL,
    seq          integer NOT NULL,
    call         bigint NOT NULL DEFAULT 0,
    from_attempt integer NOT NULL DEFAULT 0,
    from_seq     integer NOT NULL DEFAULT -1
);
COMMENT ON COLUMN headrace.cursors.call IS 'The last call: one that is repeated after a lost connection begins again where it began (from_attempt, from_seq).';
