-- `scq-proxy copy` into PostgreSQL, in one transaction: what goes before and behind the rows of its tables (`rows.TABLES`).

-- name: settings
-- Durable, and with all the time that it takes; but nobody is waited for.
SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
  set_config('lock_timeout', '4000', true), set_config('statement_timeout', '0', true),
  set_config('idle_in_transaction_session_timeout', '0', true);

-- name: lock
-- Until the transaction ends, nobody reads half of it.
LOCK TABLE meta, lanes, pushes, held, dead, seen, visitors, aliases, tombstones, counters, not_offered, gate, schedules, sign_ups, networks IN ACCESS EXCLUSIVE MODE;

-- name: others
-- Nodes: they would go on with the key of the store that was there before.
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = current_setting('application_name') AND pid <> pg_backend_pid();

-- name: content
-- What says that this store was used; a name is counted as often as it has rows.
SELECT 'lanes', count(*) FROM lanes UNION ALL SELECT 'pushes', count(*) FROM pushes UNION ALL SELECT 'held', count(*) FROM held
UNION ALL SELECT 'dead', count(*) FROM dead UNION ALL SELECT 'seen', count(*) FROM seen UNION ALL SELECT 'visitors', count(*) FROM visitors
UNION ALL SELECT 'aliases', count(*) FROM aliases UNION ALL SELECT 'tombstones', count(*) FROM tombstones
UNION ALL SELECT 'sign_ups', count(*) FROM sign_ups;

-- name: clear
-- What a store has that was never used.
TRUNCATE meta, counters, not_offered, gate, schedules, networks;

-- name: number
-- The next row of a table comes behind this number, which the last one had; a number is never given out twice.
SELECT setval(pg_get_serial_sequence(%(table)s, %(column)s), greatest(%(number)s::bigint, 1), %(number)s::bigint > 0);

-- name: analyze
ANALYZE;
