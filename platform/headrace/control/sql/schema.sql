-- Migrations of control.db, oldest first. One that was released is never changed: add the next number.
-- PRAGMA user_version holds the number of the last one that ran.

-- migration: 1
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE endpoints (
    project         TEXT NOT NULL,
    name            TEXT NOT NULL,
    current_version INTEGER,             -- NULL: no version has been verified yet
    min_override    INTEGER,             -- set by scale; NULL: as the spec says
    max_override    INTEGER,
    created_at      REAL NOT NULL,
    updated_at      REAL NOT NULL,
    PRIMARY KEY (project, name)
) WITHOUT ROWID;

CREATE TABLE versions (
    project    TEXT NOT NULL,
    name       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    spec       BLOB NOT NULL,            -- canonical JSON of the EndpointSpec
    bundle     TEXT NOT NULL,            -- sha256
    verified   INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    PRIMARY KEY (project, name, version),
    FOREIGN KEY (project, name) REFERENCES endpoints (project, name) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE INDEX versions_bundle ON versions (bundle);

CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    project    TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,     -- sha256 (hex) of the key, never the key
    scopes     TEXT NOT NULL,            -- separated by spaces
    created_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE intents (
    id         TEXT PRIMARY KEY,
    project    TEXT NOT NULL,
    provider   TEXT NOT NULL,
    node       TEXT,                     -- the provider's id, once it is known
    kind       TEXT NOT NULL,            -- launch or terminate
    spec       TEXT NOT NULL,            -- JSON
    state      TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
) WITHOUT ROWID;

CREATE INDEX intents_state ON intents (state);

CREATE TABLE nodes (
    id         TEXT PRIMARY KEY,
    project    TEXT NOT NULL,
    provider   TEXT NOT NULL,
    intent     TEXT REFERENCES intents (id),
    spec       TEXT NOT NULL,            -- JSON
    state      TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
) WITHOUT ROWID;

-- migration: 2
ALTER TABLE nodes ADD COLUMN detail TEXT NOT NULL DEFAULT '';   -- why it is in its state

-- migration: 3
CREATE TABLE deployments (
    id         TEXT PRIMARY KEY,
    project    TEXT NOT NULL,
    parts      TEXT NOT NULL,            -- JSON: endpoint, version, state, ... of each
    created_at REAL NOT NULL
) WITHOUT ROWID;

-- migration: 4
ALTER TABLE keys ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE keys ADD COLUMN endpoints TEXT NOT NULL DEFAULT '';  -- names it may call, separated by spaces; '': all
ALTER TABLE keys ADD COLUMN rate REAL NOT NULL DEFAULT 0;        -- requests per second and gateway; 0: no limit
ALTER TABLE keys ADD COLUMN burst INTEGER NOT NULL DEFAULT 0;

-- migration: 5
-- Of each part by itself, so that its end and what it makes current are one transaction. (Nobody has the old form:
-- it was never released.)
DROP TABLE deployments;

CREATE TABLE deployments (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,  -- they began in this order, whatever the clock says
    id         TEXT NOT NULL UNIQUE,
    project    TEXT NOT NULL,
    created_at REAL NOT NULL
);

CREATE TABLE trials (
    deployment INTEGER NOT NULL REFERENCES deployments (number) ON DELETE CASCADE,
    place      INTEGER NOT NULL,         -- among the deployment's endpoints
    project    TEXT NOT NULL,
    endpoint   TEXT NOT NULL,
    version    INTEGER NOT NULL,
    state      TEXT NOT NULL,            -- unchanged, starting, ready, failed
    outcome    TEXT NOT NULL,            -- JSON: detail, traceback, notes
    PRIMARY KEY (deployment, endpoint)
) WITHOUT ROWID;

CREATE INDEX trials_open ON trials (project, endpoint) WHERE state = 'starting';

-- migration: 6
CREATE TABLE secrets (
    project    TEXT NOT NULL,
    name       TEXT NOT NULL,
    version    INTEGER NOT NULL,         -- never used for another value, also after a deletion
    key        TEXT NOT NULL,            -- id of the key that seals it
    sealed     BLOB,                     -- nonce and ciphertext; NULL: it was deleted
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (project, name)
) WITHOUT ROWID;
