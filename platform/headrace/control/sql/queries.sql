-- Every statement of control's store, by name. The comment under a name says what it is for.

-- name: meta_get
-- One value of the store's own bookkeeping.
SELECT value FROM meta WHERE key = :key;

-- name: meta_set
-- Set one value of the store's own bookkeeping.
INSERT INTO meta (key, value) VALUES (:key, :value)
ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: endpoints_load
-- Every endpoint with the spec of its current version, most recently changed first; for control's start.
SELECT e.project, e.name, e.current_version, e.min_override, e.max_override, e.created_at, e.updated_at, v.spec
FROM endpoints e
LEFT JOIN versions v ON v.project = e.project AND v.name = e.name AND v.version = e.current_version
ORDER BY e.updated_at DESC;

-- name: endpoints_page
-- A page of names after a name, in order.
SELECT name FROM endpoints WHERE project = :project AND name > :after ORDER BY name LIMIT :limit;

-- name: endpoint_insert
-- Make the row of an endpoint when it is new.
INSERT INTO endpoints (project, name, created_at, updated_at) VALUES (:project, :name, :at, :at)
ON CONFLICT (project, name) DO NOTHING;

-- name: endpoint_scale
-- Set what `scale` overrides.
UPDATE endpoints SET min_override = :min, max_override = :max WHERE project = :project AND name = :name;

-- name: endpoint_delete
-- Remove an endpoint; its versions go with it.
DELETE FROM endpoints WHERE project = :project AND name = :name;

-- name: endpoint_flip
-- Make a stored version the current one.
UPDATE endpoints SET current_version = :version, updated_at = :at WHERE project = :project AND name = :name;

-- name: version_next
-- The number that the next version gets.
SELECT coalesce(max(version), 0) + 1 FROM versions WHERE project = :project AND name = :name;

-- name: version_insert
-- Store an immutable version.
INSERT INTO versions (project, name, version, spec, bundle, verified, created_at)
VALUES (:project, :name, :version, :spec, :bundle, :verified, :at);

-- name: version_verified
-- The version has been current once: rollback may choose it.
UPDATE versions SET verified = 1 WHERE project = :project AND name = :name AND version = :version;

-- name: version_spec
-- The spec of one version.
SELECT spec FROM versions WHERE project = :project AND name = :name AND version = :version;

-- name: version_specs
-- The specs of the versions of one endpoint.
SELECT version, spec FROM versions WHERE project = :project AND name = :name;

-- name: versions_of
-- The versions of one endpoint, newest first.
SELECT version, bundle, verified, created_at FROM versions
WHERE project = :project AND name = :name ORDER BY version DESC;

-- name: versions_numbers
-- (project, name, version) of every stored version that was current once; for control's start.
SELECT project, name, version FROM versions WHERE verified = 1 ORDER BY project, name, version;

-- name: versions_prune
-- Keep the newest versions (those above :below), the current one, and those being tried.
DELETE FROM versions
WHERE project = :project AND name = :name AND version <= :below
  AND version IS NOT (SELECT current_version FROM endpoints WHERE project = :project AND name = :name)
  AND version NOT IN (
      SELECT version FROM trials WHERE project = :project AND endpoint = :name AND state = 'starting'
  );

-- name: bundles
-- Every bundle that a stored version needs.
SELECT DISTINCT bundle FROM versions;

-- name: contexts
-- Every image context that a stored version needs.
SELECT DISTINCT json_extract(CAST(spec AS TEXT), '$.image.context') FROM versions
WHERE instr(CAST(spec AS TEXT), '"context":""') = 0 AND json_valid(CAST(spec AS TEXT));

-- name: keys_all
-- All API keys (their hashes).
SELECT id, hash, project, scopes, name, endpoints, rate, burst, created_at FROM keys ORDER BY id;

-- name: key_put
-- Add a key, or replace the one of that id.
INSERT INTO keys (id, project, hash, scopes, name, endpoints, rate, burst, created_at)
VALUES (:id, :project, :hash, :scopes, :name, :endpoints, :rate, :burst, :at)
ON CONFLICT (id) DO UPDATE SET project = excluded.project, hash = excluded.hash, scopes = excluded.scopes,
    name = excluded.name, endpoints = excluded.endpoints, rate = excluded.rate, burst = excluded.burst;

-- name: key_delete
-- Remove a key of a project; it is refused from now on.
DELETE FROM keys WHERE id = :id AND project = :project;

-- name: secrets_all
-- All secrets that have a value.
SELECT project, name, version, key, sealed, created_at, updated_at FROM secrets WHERE sealed IS NOT NULL;

-- name: secret_next
-- The number that the next version gets.
SELECT coalesce(max(version), 0) + 1 FROM secrets WHERE project = :project AND name = :name;

-- name: secret_put
-- Store the next version; the one before is gone.
INSERT INTO secrets (project, name, version, key, sealed, created_at, updated_at)
VALUES (:project, :name, :version, :key, :sealed, :at, :at)
ON CONFLICT (project, name) DO UPDATE SET version = excluded.version, key = excluded.key,
    sealed = excluded.sealed, updated_at = excluded.updated_at,
    created_at = CASE WHEN secrets.sealed IS NULL THEN excluded.created_at ELSE secrets.created_at END
RETURNING project, name, version, key, sealed, created_at, updated_at;

-- name: secret_reseal
-- Seal a version with another key.
UPDATE secrets SET key = :key, sealed = :sealed
WHERE project = :project AND name = :name AND version = :version AND sealed IS NOT NULL;

-- name: secret_delete
-- Forget a value; the name keeps its number.
UPDATE secrets SET sealed = NULL, key = '', updated_at = :at
WHERE project = :project AND name = :name AND sealed IS NOT NULL;

-- name: intent_put
-- Write what is about to be done to a node, before it is done.
INSERT INTO intents (id, project, provider, node, kind, spec, state, created_at, updated_at)
VALUES (:id, :project, :provider, :node, :kind, :spec, :state, :created_at, :updated_at);

-- name: intent_update
-- An intent came further; a node once known is kept.
UPDATE intents SET state = :state, node = coalesce(:node, node), updated_at = :at WHERE id = :id;

-- name: intents_all
-- All intents, oldest first.
SELECT id, project, provider, kind, spec, state, created_at, updated_at, node FROM intents ORDER BY created_at, id;

-- name: node_put
-- Add a node, or replace what is known of it.
INSERT INTO nodes (id, project, provider, intent, spec, state, detail, created_at, updated_at)
VALUES (:id, :project, :provider, :intent, :spec, :state, :detail, :created_at, :updated_at)
ON CONFLICT (id) DO UPDATE
SET state = excluded.state, detail = excluded.detail, spec = excluded.spec, updated_at = excluded.updated_at;

-- name: node_delete
-- Forget a node.
DELETE FROM nodes WHERE id = :id;

-- name: nodes_all
-- All nodes, oldest first.
SELECT id, project, provider, spec, state, created_at, updated_at, intent, detail FROM nodes ORDER BY created_at, id;

-- name: deployment_insert
-- A deployment begins.
INSERT INTO deployments (id, project, created_at) VALUES (:id, :project, :at);

-- name: deployments_prune
-- Forget all but the newest deployments, and those that go on.
DELETE FROM deployments
WHERE number <= (SELECT max(number) FROM deployments) - :kept
  AND number NOT IN (SELECT deployment FROM trials WHERE state = 'starting');

-- name: deployments_all
-- All deployments, in the order in which they began.
SELECT number, id, project FROM deployments ORDER BY number;

-- name: trial_insert
-- One endpoint of a deployment.
INSERT INTO trials (deployment, place, project, endpoint, version, state, outcome)
VALUES (:deployment, :place, :project, :endpoint, :version, :state, :outcome);

-- name: trials_all
-- The endpoints of all deployments, in their order.
SELECT deployment, endpoint, version, state, outcome FROM trials ORDER BY deployment, place;

-- name: trial_of
-- How far one endpoint of a deployment is, and the deployment's number.
SELECT t.deployment, t.state, t.outcome FROM trials t JOIN deployments d ON d.number = t.deployment
WHERE d.id = :id AND t.endpoint = :endpoint;

-- name: trial_settle
-- One endpoint of a deployment came to its end; what came to one already stays as it is.
UPDATE trials SET state = :state, outcome = :outcome
WHERE deployment = (SELECT number FROM deployments WHERE id = :id) AND endpoint = :endpoint AND state = 'starting';

-- name: trials_end
-- End what earlier deployments (below the number; NULL: all) still try of an endpoint.
UPDATE trials SET state = 'failed', outcome = :outcome
WHERE project = :project AND endpoint = :endpoint AND state = 'starting'
  AND (:below IS NULL OR deployment < :below);
