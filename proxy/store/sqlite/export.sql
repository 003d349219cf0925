-- An SQLite store read for `scq-proxy copy`: the rows of each table, in the columns that PostgreSQL has, and in the order in which they grew.
-- No lease, no probe and no erasure is left when these run, so that the columns about them are not read.

-- name: meta
SELECT name, value FROM meta;

-- name: lanes
SELECT id, key, address, verified, waiting, ready_at, epoch, failures, put_off, identify_digest, identify_at FROM lanes ORDER BY id;

-- name: pushes
SELECT seq, lane, id, address, trust, kind, body, since, attempts, increments FROM pushes ORDER BY seq;

-- name: held
SELECT seq, visitor, id, body, since FROM held ORDER BY seq;

-- name: dead
SELECT seq, lane, id, address, trust, kind, body, since, attempts, reason, detail, at, key FROM dead ORDER BY seq;

-- name: seen
SELECT id, at, shown, after, NULL FROM seen ORDER BY id;

-- name: visitors
SELECT id, at, retired, identified, left FROM visitors ORDER BY id;

-- name: aliases
SELECT key, lane, at FROM aliases ORDER BY key;

-- name: tombstones
SELECT hash, at FROM tombstones ORDER BY hash;

-- name: counters
SELECT name, value FROM counters ORDER BY name;

-- name: not_offered
SELECT setting, name, count, last FROM not_offered ORDER BY setting, name;

-- name: gate
SELECT closure FROM gate;

-- name: schedules
SELECT name, until FROM schedules ORDER BY name;

-- name: at_work
-- What a server that has not ended properly left behind: it is brought to an end by opening the store.
SELECT (SELECT count(*) FROM lanes WHERE leased) + (SELECT count(*) FROM erasures) + (SELECT count(*) FROM gate WHERE probe_until IS NOT NULL);

-- name: numbers
-- The highest that were ever given out.
SELECT name, seq FROM sqlite_sequence WHERE name IN ('lanes', 'pushes', 'held');
