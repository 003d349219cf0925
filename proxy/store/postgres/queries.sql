-- The queries of the PostgreSQL outbox by name, in sections named after the module that uses them, or uses them first.
-- Times are Unix seconds of the database's clock.
-- {now} is that clock, {shard} the part of a counter that this connection writes to. Parameters have names, and their types where they
-- are not plain: the same text has to do behind a pooler, where nothing can be prepared for a session.

-- ──── schema

-- name: schema_version
SELECT version FROM scq_schema;

-- name: server
SELECT current_setting('server_version'), current_setting('server_version_num')::int, current_setting('server_encoding'),
current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
current_setting('synchronous_standby_names'), pg_is_in_recovery();

-- name: followers
-- The standbys, how many are synchronous, and the largest lag of the others: NULL for a role that may not see it.
SELECT count(*), CASE WHEN count(*) = count(sync_state) THEN count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) END,
max(pg_current_wal_lsn() - flush_lsn) FILTER (WHERE sync_state IN ('async', 'potential'))::bigint
FROM pg_stat_replication WHERE state IS NULL OR state <> 'backup';

-- name: tables
-- Those with our names that are found without a schema before them, and whether a crash would empty them.
SELECT c.relname, c.relpersistence <> 'p' FROM pg_class c
WHERE c.relkind IN ('r', 'p') AND c.relname = ANY (%(names)s::text[]) AND pg_table_is_visible(c.oid) ORDER BY 1;

-- ──── locks

-- name: lock
-- Until the transaction ends, in the order of the arrays.
SELECT count(pg_advisory_xact_lock(class, key)) FROM unnest(%(classes)s::int[], %(keys)s::int[]) AS l (class, key);

-- name: try_lock
-- Out of order, so without waiting: two that waited for each other would be found out only after a second.
SELECT bool_and(pg_try_advisory_xact_lock(class, key)) FROM unnest(%(classes)s::int[], %(keys)s::int[]) AS l (class, key);

-- name: share_lock
SELECT count(pg_advisory_xact_lock_shared(class, key)) FROM unnest(%(classes)s::int[], %(keys)s::int[]) AS l (class, key);

-- ──── database

-- name: end_stopped
-- Transactions that hold locks here, and whose node has sent a part of a batch of statements and then nothing: no time-out of the server ends
-- them, because it takes them for at work.
SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.usename = current_user AND a.state = 'active' AND a.wait_event = 'ClientRead'
AND a.xact_start IS NOT NULL AND a.query NOT LIKE 'COPY %%'
AND a.state_change < statement_timestamp() - make_interval(secs => %(limit)s)
AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted
            AND (l.locktype = 'advisory' OR l.relation = 'lanes'::regclass OR l.relation = 'counters'::regclass));

-- name: unconfirmed
-- Commits of this role that have waited longer than %(seconds)s for a synchronous standby.
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user AND wait_event = 'SyncRep'
AND query_start < statement_timestamp() - make_interval(secs => %(seconds)s);

-- ──── appends

-- name: clock
-- Also whether commits wait for standbys: then a row that is visible here may not have reached them.
SELECT {now}, (SELECT coalesce(sum(value), 0)::bigint FROM counters WHERE name = 'gauge:unvouched_bytes'),
  trim(current_setting('synchronous_standby_names')) <> '';

-- name: id_bytes
SELECT coalesce(sum(value), 0)::bigint FROM counters WHERE name >= 'gauge:id_bytes:' AND name < 'gauge:id_bytes;';

-- name: seen
SELECT id, shown, after, at FROM seen WHERE id = ANY (%(ids)s::text[]);

-- name: people
-- What is known of each lane key; the hashes are those of its tombstone.
SELECT p.key, l.id, l.verified, l.waiting, l.bytes, l.put_off, moved.address, a.at, t.at
FROM unnest(%(keys)s::text[], %(hashes)s::bytea[]) AS p (key, hash)
LEFT JOIN lanes l ON l.key = p.key
LEFT JOIN aliases a ON a.key = p.key
LEFT JOIN lanes moved ON moved.id = a.lane
LEFT JOIN tombstones t ON t.hash = p.hash;

-- name: visitors
SELECT w.id, coalesce(v.retired, false), CASE WHEN v.identified THEN v.at END, v.person,
  (SELECT count(*) FROM held WHERE visitor = w.id), v.shown, v.shown_by
FROM unnest(%(visitors)s::text[]) AS w (id) LEFT JOIN visitors v ON v.id = w.id;

-- name: held
SELECT visitor, seq, id, body, since FROM held WHERE visitor = ANY (%(held)s::text[]) ORDER BY seq;

-- name: schedules
SELECT name, until FROM schedules WHERE name = ANY (%(schedules)s::text[]);

-- name: lock_lanes
SELECT id FROM lanes WHERE key = ANY (%(keys)s::text[]) ORDER BY id FOR NO KEY UPDATE;

-- name: change_lanes
-- A lane that waits for anything keeps its time. One that is put off has none, and goes at once when somebody who is vouched for comes.
UPDATE lanes l SET waiting = l.waiting + c.gained, bytes = l.bytes + c.bytes, verified = l.verified OR c.verify,
ready_at = CASE WHEN c.gained = 0 THEN l.ready_at WHEN l.put_off AND c.vouched THEN {now} WHEN l.put_off OR l.ready_at IS NOT NULL THEN l.ready_at
                WHEN NOT c.put_off THEN {now} END,
put_off = CASE WHEN c.gained = 0 THEN l.put_off WHEN l.put_off OR l.ready_at IS NOT NULL THEN l.put_off AND NOT c.vouched ELSE c.put_off END,
stranger = CASE WHEN c.gained = 0 THEN l.stranger ELSE NOT c.vouched AND (l.stranger OR l.waiting = 0) END
FROM unnest(%(keys)s::text[], %(gained)s::int[], %(bytes)s::bigint[], %(put_off)s::bool[], %(vouched)s::bool[], %(verify)s::bool[])
  AS c (key, gained, bytes, put_off, vouched, verify)
WHERE l.key = c.key;

-- name: new_lanes
INSERT INTO lanes (key, waiting, bytes, ready_at, put_off, stranger, verified)
SELECT key, gained, bytes, CASE WHEN gained > 0 AND NOT put_off THEN {now} END, put_off, gained > 0 AND NOT vouched, verify
FROM unnest(%(keys)s::text[], %(gained)s::int[], %(bytes)s::bigint[], %(put_off)s::bool[], %(vouched)s::bool[], %(verify)s::bool[])
  AS c (key, gained, bytes, put_off, vouched, verify)
ORDER BY key;

-- name: enqueue
-- Behind change_lanes, in a transaction that has locked the lanes: the order of seq is the order of commits.
INSERT INTO pushes (lane, id, address, trust, kind, body, since, increments)
SELECT l.id, p.id, p.address, p.trust, p.kind, p.body, p.since, p.increments
FROM unnest(%(keys)s::text[], %(ids)s::text[], %(addresses)s::text[], %(trusts)s::smallint[], %(kinds)s::text[], %(bodies)s::bytea[],
            %(sinces)s::float8[], %(increments)s::bool[])
  WITH ORDINALITY AS p (key, id, address, trust, kind, body, since, increments, place)
JOIN lanes l ON l.key = p.key ORDER BY p.place;

-- name: change_visitors
-- To be shown does not change the time at which the visitor was identified.
INSERT INTO visitors AS v (id, at, retired, identified, person, shown, shown_by)
SELECT id, {now}, retired, identified, person, CASE WHEN shown_by IS NOT NULL THEN {now} END, shown_by
FROM unnest(%(ids)s::text[], %(retired)s::bool[], %(identified)s::bool[], %(persons)s::text[], %(shown_by)s::text[])
  AS c (id, retired, identified, person, shown_by)
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
at = CASE WHEN v.identified AND NOT excluded.retired AND NOT excluded.identified AND excluded.person IS NULL THEN v.at ELSE excluded.at END,
retired = v.retired OR excluded.retired, identified = v.identified OR excluded.identified,
person = coalesce(excluded.person, v.person), shown = coalesce(v.shown, excluded.shown),
shown_by = coalesce(v.shown_by, excluded.shown_by);

-- name: unhold
DELETE FROM held WHERE seq = ANY (%(seqs)s::bigint[]);

-- name: hold
INSERT INTO held (visitor, id, body, since)
SELECT visitor, id, body, since
FROM unnest(%(visitors)s::text[], %(ids)s::text[], %(bodies)s::bytea[], %(sinces)s::float8[])
  WITH ORDINALITY AS h (visitor, id, body, since, place) ORDER BY place;

-- name: end_aliases
DELETE FROM aliases WHERE key = ANY (%(keys)s::text[]);

-- name: remember
-- Fewer rows than were given: another node has stored one of them meanwhile.
INSERT INTO seen (id, at, shown, after, after_key)
SELECT id, {now}, shown, after, after_key
FROM unnest(%(ids)s::text[], %(showns)s::text[], %(afters)s::bytea[], %(after_keys)s::text[]) AS s (id, shown, after, after_key)
ORDER BY id ON CONFLICT (id) DO NOTHING;

-- name: set_schedules
INSERT INTO schedules AS s (name, until) SELECT name, until FROM unnest(%(names)s::text[], %(untils)s::float8[]) AS c (name, until)
ORDER BY name ON CONFLICT (name) DO UPDATE SET until = excluded.until;

-- name: not_offered
-- Anybody can ask for anything: once the table is full, only what it lists is counted on.
INSERT INTO not_offered AS n (setting, name, shard, count, last)
SELECT c.setting, c.name, {shard}, c.count, {now}
FROM unnest(%(settings)s::text[], %(names)s::text[], %(counts)s::bigint[]) AS c (setting, name, count)
WHERE EXISTS (SELECT FROM not_offered o WHERE o.setting = c.setting AND o.name = c.name)
OR (SELECT count(*) FROM (SELECT FROM not_offered LIMIT %(most)s) AS listed) < %(most)s
ORDER BY c.setting, c.name
ON CONFLICT (setting, name, shard) DO UPDATE SET count = n.count + excluded.count, last = excluded.last;

-- ──── leases

-- name: gate
SELECT closure FROM gate;

-- name: move_gate
UPDATE gate SET closure = %(closure)s::bytea, probe_until = NULL;

-- name: probe
UPDATE gate SET probe_until = {now} + %(seconds)s RETURNING probe_until;

-- name: end_probe
UPDATE gate SET probe_until = NULL WHERE probe_until = %(until)s::float8;

-- name: before_claim
-- What shuts the gate, and whether there may be lanes of strangers to claim: ready, or put off.
SELECT closure, EXISTS (SELECT FROM lanes WHERE stranger AND ready_at >= %(stranger_floor)s AND ready_at <= {now}) OR EXISTS (SELECT FROM sign_ups)
FROM gate;

-- name: claimable
-- Claims nothing while the gate is shut; share_lock keeps others from moving the gate until this transaction ends. %(floor)s: see `floor`.
SELECT id, leased, failures, key, address, identify_digest, identify_at, stranger FROM lanes
WHERE NOT stranger AND ready_at >= %(floor)s AND ready_at <= {now} AND (SELECT closure IS NULL FROM gate)
ORDER BY ready_at LIMIT %(lanes)s FOR NO KEY UPDATE SKIP LOCKED;

-- name: claimable_strangers
SELECT id, leased, failures, key, address, identify_digest, identify_at, stranger FROM lanes
WHERE stranger AND ready_at >= %(stranger_floor)s AND ready_at <= {now} ORDER BY ready_at LIMIT %(lanes)s FOR NO KEY UPDATE SKIP LOCKED;

-- name: may_probe
-- Whether nobody has a probe out.
SELECT probe_until IS NULL OR NOT (probe_until > {now} AND probe_until <= {now} + %(seconds)s) FROM gate;

-- name: claimable_for_probe
-- Of those that have waited longest, the one that has failed least: a contact of whom SendX always fails must not stand for all.
SELECT id, leased, failures, key, address, identify_digest, identify_at, stranger FROM lanes
WHERE id IN (
  (SELECT id FROM lanes WHERE NOT stranger AND ready_at >= %(floor)s AND ready_at <= {now} ORDER BY ready_at LIMIT 1000)
  UNION ALL (SELECT id FROM lanes WHERE stranger AND ready_at >= %(stranger_floor)s AND ready_at <= {now} ORDER BY ready_at LIMIT 1000)
) AND ready_at <= {now}
ORDER BY failures, ready_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;

-- name: heads
SELECT p.seq, p.id, p.address, p.trust, p.kind, p.body, p.since, p.attempts, p.increments, l.lane
FROM unnest(%(lanes)s::bigint[], %(mosts)s::bigint[]) WITH ORDINALITY AS l (lane, most, place)
CROSS JOIN LATERAL (SELECT * FROM pushes WHERE lane = l.lane ORDER BY seq LIMIT l.most) AS p
ORDER BY l.place, p.seq;

-- name: lease
-- An epoch never comes twice, nor after the database was set back to an older state. %(epoch)s: the time in microseconds.
UPDATE lanes SET epoch = greatest(epoch + 1, %(epoch)s::bigint), leased = true, revoked = false, ready_at = {now} + %(seconds)s,
put_off = false, stranger = false WHERE id = ANY (%(lanes)s::bigint[]) RETURNING id, epoch, stranger;

-- name: lease_asserted
-- The same for lanes whose heads were only asserted: something vouched may wait behind.
UPDATE lanes l SET epoch = greatest(epoch + 1, %(epoch)s::bigint), leased = true, revoked = false, ready_at = {now} + %(seconds)s,
put_off = false, stranger = NOT EXISTS (SELECT FROM pushes p WHERE p.lane = l.id AND p.trust = 2)
WHERE id = ANY (%(lanes)s::bigint[]) RETURNING id, epoch, stranger;

-- name: start
UPDATE pushes SET started = true WHERE seq = ANY (%(seqs)s::bigint[]);

-- name: started
SELECT lane, seq, address, length(body) FROM pushes WHERE lane = ANY (%(lanes)s::bigint[]) AND started ORDER BY seq;

-- name: held_leases
SELECT id, epoch FROM lanes WHERE id = ANY (%(lanes)s::bigint[]) AND leased AND NOT revoked;

-- name: lock_leases
SELECT id, epoch, leased, revoked, key FROM lanes WHERE id = ANY (%(lanes)s::bigint[]) ORDER BY id FOR NO KEY UPDATE;

-- name: addresses
SELECT seq, address FROM pushes WHERE seq = ANY (%(seqs)s::bigint[]);

-- name: release
-- Released by the count of what waits, under the lane's lock: to look for pushes would miss those that are about to commit.
-- Merging marks a lane under a lease with -1: what is known under that lease does not count any more.
-- A sign-up of which nothing left waits for another turn, unless somebody has vouched for the lane meanwhile.
-- A lane that is empty has nothing to back off from, and can be forgotten. A node of an older version counts no bytes.
UPDATE lanes l SET waiting = l.waiting - s.gone, bytes = CASE WHEN l.waiting > s.gone THEN greatest(l.bytes - s.freed, 0) ELSE 0 END,
leased = false, revoked = false, failures = CASE WHEN l.waiting > s.gone THEN s.failures ELSE 0 END,
put_off = s.put_off AND l.stranger AND NOT l.verified AND l.waiting > s.gone,
ready_at = CASE WHEN l.waiting > s.gone AND NOT (s.put_off AND l.stranger AND NOT l.verified) THEN {now} + greatest(s.delay, 0) END,
identify_digest = CASE WHEN NOT s.learned THEN l.identify_digest WHEN l.identify_at = -1 THEN NULL ELSE s.digest END,
identify_at = CASE WHEN l.identify_at = -1 THEN NULL WHEN NOT s.learned THEN l.identify_at ELSE s.digest_at END
FROM unnest(%(lanes)s::bigint[], %(gone)s::bigint[], %(failures)s::bigint[], %(delays)s::float8[], %(learned)s::bool[],
            %(digests)s::bytea[], %(digest_ats)s::float8[], %(freed)s::bigint[], %(put_off)s::bool[])
  AS s (lane, gone, failures, delay, learned, digest, digest_at, freed, put_off)
WHERE l.id = s.lane;

-- name: remove
DELETE FROM pushes WHERE seq = ANY (%(seqs)s::bigint[]);

-- name: attempted
UPDATE pushes SET attempts = attempts + 1 WHERE seq = ANY (%(seqs)s::bigint[]);

-- name: bury
WITH gone AS (
  DELETE FROM pushes p
  USING unnest(%(seqs)s::bigint[], %(attempted)s::int[], %(reasons)s::text[], %(details)s::text[], %(keys)s::text[])
    AS d (seq, attempted, reason, detail, key)
  WHERE p.seq = d.seq
  RETURNING p.seq, p.lane, p.id, p.address, p.trust, p.kind, p.body, p.since, p.attempts + d.attempted, d.reason, d.detail, {now}, d.key
)
INSERT INTO dead (seq, lane, id, address, trust, kind, body, since, attempts, reason, detail, at, key) SELECT * FROM gone;

-- name: unstart
UPDATE pushes SET started = false WHERE seq = ANY (%(seqs)s::bigint[]);

-- name: forget_lanes
DELETE FROM lanes WHERE id = ANY (%(lanes)s::bigint[]) AND waiting = 0 AND NOT verified;

-- ──── turns

-- name: standing
-- From when on a client may have a turn (0: now, NULL: nobody waits), until when the account is busy with turns; and the time.
SELECT CASE WHEN EXISTS (SELECT FROM networks WHERE parent = '' AND waiting > 0 AND rests IS NULL) THEN 0
            ELSE (SELECT min(rests) FROM networks WHERE rests IS NOT NULL) END,
coalesce((SELECT until FROM schedules WHERE name = 'sign-ups'), 0), {now};

-- name: join_queue
-- A lane that is put off waits for a turn of each of these clients. A resting client is woken: its rows count again in the networks around it.
WITH added AS (
  INSERT INTO sign_ups (lane, client, at)
  SELECT l.id, c.client, coalesce(c.at, {now})
  FROM unnest(%(keys)s::text[], %(clients)s::text[], %(ats)s::float8[]) WITH ORDINALITY AS c (key, client, at, place)
  JOIN lanes l ON l.key = c.key WHERE l.put_off ORDER BY c.place
  ON CONFLICT (lane, client) DO NOTHING RETURNING lane, client
), gained AS (
  SELECT a.client, count(*) AS own, coalesce(max(n.waiting) FILTER (WHERE n.rests IS NOT NULL), 0) AS woken
  FROM added a LEFT JOIN networks n ON n.name = a.client GROUP BY a.client
), raised AS (
  INSERT INTO networks AS n (name, parent, waiting, weight)
  SELECT p.name, p.parent, sum(CASE WHEN p.name = p.client THEN g.own ELSE g.own + g.woken END), %(weight)s::float8
  FROM unnest(%(ends)s::text[], %(names)s::text[], %(parents)s::text[]) AS p (client, name, parent) JOIN gained g ON g.client = p.client
  GROUP BY p.name, p.parent ORDER BY p.name
  ON CONFLICT (name) DO UPDATE SET waiting = n.waiting + excluded.waiting, rests = NULL
)
INSERT INTO counters AS c (name, shard, value)
SELECT 'gauge:sign_ups', {shard}, count(DISTINCT a.lane) FROM added a WHERE NOT EXISTS (SELECT FROM sign_ups s WHERE s.lane = a.lane)
HAVING count(*) > 0 ON CONFLICT (name, shard) DO UPDATE SET value = c.value + excluded.value;

-- name: leave_queue
-- Of a client that rests, nothing counts in the networks around it.
WITH RECURSIVE gone AS (
  DELETE FROM sign_ups WHERE lane IN (SELECT id FROM lanes WHERE key = ANY (%(keys)s::text[]) UNION ALL SELECT unnest(%(lanes)s::bigint[]))
  RETURNING lane, client
), lost AS (
  SELECT client, count(*) AS number FROM gone GROUP BY client
), path AS (
  SELECT n.name, CASE WHEN n.rests IS NULL THEN n.parent ELSE '' END AS parent, l.number FROM lost l JOIN networks n ON n.name = l.client
  UNION ALL
  SELECT n.name, n.parent, p.number FROM path p JOIN networks n ON n.name = p.parent
), lowered AS (
  UPDATE networks n SET waiting = n.waiting - p.number
  FROM (SELECT name, sum(number)::bigint AS number FROM path GROUP BY name) AS p WHERE n.name = p.name
)
INSERT INTO counters AS c (name, shard, value) SELECT 'gauge:sign_ups', {shard}, -count(DISTINCT lane) FROM gone
HAVING count(*) > 0 ON CONFLICT (name, shard) DO UPDATE SET value = c.value + excluded.value;

-- name: wake
-- Those that have rested until now.
WITH RECURSIVE path AS (
  SELECT name, parent, waiting AS number, true AS rested FROM networks WHERE rests <= {now}
  UNION ALL
  SELECT n.name, n.parent, p.number, false FROM path p JOIN networks n ON n.name = p.parent
)
UPDATE networks n SET rests = NULL, waiting = n.waiting + p.number
FROM (SELECT name, coalesce(sum(number) FILTER (WHERE NOT rested), 0)::bigint AS number FROM path GROUP BY name) AS p WHERE n.name = p.name;

-- name: walk
-- From the widest network to a client, always to the one that was served least; and its first sign-up, whose lane is locked unless somebody else
-- has it. Nothing if nobody waits.
WITH RECURSIVE path AS (
  SELECT * FROM (
    SELECT name, weight, until, 1 AS depth FROM networks WHERE parent = '' AND waiting > 0 AND rests IS NULL ORDER BY weight LIMIT 1
  ) AS widest
  UNION ALL
  SELECT inner_one.* FROM path CROSS JOIN LATERAL (
    SELECT n.name, n.weight, n.until, path.depth + 1 FROM networks n
    WHERE n.parent = path.name AND n.waiting > 0 AND n.rests IS NULL ORDER BY n.weight LIMIT 1
  ) AS inner_one
), client AS (
  SELECT array_agg(name ORDER BY depth) AS names, array_agg(weight ORDER BY depth) AS weights,
  (array_agg(name ORDER BY depth DESC))[1] AS name, (array_agg(until ORDER BY depth DESC))[1] AS until FROM path HAVING count(*) > 0
)
SELECT c.names, c.weights, c.until, s.lane, s.at, (SELECT put_off FROM lanes WHERE id = s.lane), l.*
FROM client c
LEFT JOIN LATERAL (SELECT lane, at FROM sign_ups WHERE client = c.name ORDER BY at, seq LIMIT 1) AS s ON true
LEFT JOIN LATERAL (
  SELECT id, leased, failures, key, address, identify_digest, identify_at FROM lanes WHERE id = s.lane AND put_off FOR NO KEY UPDATE SKIP LOCKED
) AS l ON true;

-- name: rest
-- The last of the names has no turn until then. NULL: nothing of it waits, though it was counted.
UPDATE networks n SET rests = CASE WHEN n.name = c.name THEN %(at)s::float8 END,
waiting = CASE WHEN n.name = c.name AND %(at)s::float8 IS NOT NULL THEN n.waiting ELSE n.waiting - c.waiting END
FROM (SELECT name, waiting FROM networks WHERE name = (%(names)s::text[])[cardinality(%(names)s::text[])]) AS c
WHERE n.name = ANY (%(names)s::text[]);

-- name: serve
UPDATE networks n SET weight = c.weight, until = c.until
FROM unnest(%(names)s::text[], %(weights)s::float8[], %(untils)s::float8[]) AS c (name, weight, until) WHERE n.name = c.name;

-- ──── sign_ups

-- name: sign_ups
SELECT s.seq, s.lane, coalesce(l.address, (SELECT address FROM pushes p WHERE p.lane = s.lane ORDER BY p.seq LIMIT 1), l.key), s.client, s.at, l.waiting
FROM sign_ups s JOIN lanes l ON l.id = s.lane
WHERE l.put_off AND s.seq > %(after)s ORDER BY s.seq LIMIT %(limit)s;

-- name: old_sign_ups
-- Lanes that no client has typed for so long, and that were not sent since.
SELECT s.lane FROM sign_ups s WHERE s.at < {now} - %(age)s
AND NOT EXISTS (SELECT FROM sign_ups o WHERE o.lane = s.lane AND o.at >= {now} - %(age)s)
GROUP BY s.lane ORDER BY min(s.at) LIMIT %(limit)s;

-- name: stale_sign_ups
-- Of lanes that a node of an older version has let go, or a push of another node that was vouched for.
SELECT DISTINCT s.lane FROM sign_ups s WHERE NOT EXISTS (SELECT FROM lanes l WHERE l.id = s.lane AND l.put_off) LIMIT %(limit)s;

-- name: lock_put_off
SELECT id, key FROM lanes WHERE id = ANY (%(lanes)s::bigint[]) AND put_off ORDER BY id FOR NO KEY UPDATE;

-- name: empty_put_off
UPDATE lanes SET waiting = 0, bytes = 0, failures = 0, put_off = false, stranger = false WHERE id = ANY (%(lanes)s::bigint[]);

-- ──── reads

-- name: tally
INSERT INTO counters AS c (name, shard, value)
SELECT name, {shard}, value FROM unnest(%(names)s::text[], %(values)s::bigint[]) AS t (name, value)
ORDER BY name ON CONFLICT (name, shard) DO UPDATE SET value = c.value + excluded.value;

-- name: counters
SELECT name, sum(value)::bigint FROM counters GROUP BY name ORDER BY name;

-- name: oldest
SELECT since FROM pushes ORDER BY seq LIMIT 1;

-- name: vouched_ready
SELECT min(ready_at) FROM lanes WHERE stranger = false AND ready_at IS NOT NULL;

-- name: refused_names
SELECT name, setting, sum(count)::bigint, max(last) FROM not_offered GROUP BY setting, name ORDER BY 3 DESC, 4 DESC LIMIT %(limit)s;

-- name: dead_letters
-- What is not asked for is NULL: as the values are known when the statement is planned, each condition finds its index.
SELECT seq, id, address, kind, trust, reason, detail, at, since, attempts, body FROM dead
WHERE seq > %(after)s
AND (%(seqs)s::bigint[] IS NULL OR seq = ANY (%(seqs)s::bigint[]))
AND (%(ids)s::text[] IS NULL OR id = ANY (%(ids)s::text[]))
AND (%(reason)s::text IS NULL OR reason = %(reason)s::text)
AND (%(contact)s::text IS NULL OR lane = coalesce((SELECT id FROM lanes WHERE key = %(contact)s::text),
                                                  (SELECT lane FROM aliases WHERE key = %(contact)s::text)))
AND (%(before)s::float8 IS NULL OR at < %(before)s::float8)
ORDER BY seq LIMIT %(limit)s;

-- name: lanes_of_dead
SELECT seq, lane FROM dead WHERE seq = ANY (%(seqs)s::bigint[]);

-- name: replay_lanes
-- The lanes of dead letters.
SELECT id FROM lanes WHERE id = ANY (%(lanes)s::bigint[]) ORDER BY id FOR NO KEY UPDATE;

-- name: undead
WITH gone AS (
  DELETE FROM dead d USING unnest(%(seqs)s::bigint[], %(increments)s::bool[]) AS c (seq, increments)
  WHERE d.seq = c.seq AND d.lane = ANY (%(lanes)s::bigint[]) RETURNING d.*, c.increments
)
INSERT INTO pushes (lane, id, address, trust, kind, body, since, increments)
SELECT lane, id, address, trust, kind, body, since, increments FROM gone ORDER BY seq RETURNING lane, length(body), trust;

-- name: lanes_regain
UPDATE lanes l SET waiting = l.waiting + c.gained, bytes = l.bytes + c.bytes, ready_at = CASE WHEN l.put_off THEN l.ready_at ELSE coalesce(l.ready_at, {now}) END,
stranger = NOT c.vouched AND (l.stranger OR l.waiting = 0)
FROM unnest(%(lanes)s::bigint[], %(gained)s::bigint[], %(bytes)s::bigint[], %(vouched)s::bool[]) AS c (lane, gained, bytes, vouched)
WHERE l.id = c.lane;

-- name: discard
DELETE FROM dead WHERE seq = ANY (%(seqs)s::bigint[]) RETURNING trust, length(body);

-- ──── outbox

-- name: next_ready
-- Seconds from now until the first lane is ready, and the first of a stranger, NULL: more than `ahead`; and the time.
SELECT (SELECT ready_at FROM lanes WHERE NOT stranger AND ready_at >= %(floor)s AND ready_at <= {now} + %(ahead)s ORDER BY ready_at LIMIT 1) - {now},
(SELECT ready_at FROM lanes WHERE stranger AND ready_at >= %(stranger_floor)s AND ready_at <= {now} + %(ahead)s ORDER BY ready_at LIMIT 1) - {now},
{now};

-- name: reserve
-- Seconds until the first of the sends. A time that is days ahead was set under a clock that was wrong.
INSERT INTO schedules AS s (name, until) VALUES ('sends', {now} + %(seconds)s)
ON CONFLICT (name) DO UPDATE SET until = CASE WHEN s.until > {now} + 86400 THEN {now} ELSE greatest(s.until, {now}) END + %(seconds)s
RETURNING until - %(seconds)s - {now};

-- name: site_key
SELECT value FROM meta WHERE name = 'site_key';

-- ──── failovers

-- name: missing
SELECT id FROM unnest(%(ids)s::text[]) AS a (id) WHERE NOT EXISTS (SELECT FROM seen WHERE seen.id = a.id);

-- name: timelines
SELECT timeline, at, lost FROM timelines ORDER BY at;

-- name: note_timeline
INSERT INTO timelines AS t (timeline, at, lost) VALUES (%(timeline)s, {now}, %(lost)s)
ON CONFLICT (timeline) DO UPDATE SET lost = t.lost + excluded.lost, at = CASE WHEN excluded.lost > 0 THEN excluded.at ELSE t.at END;

-- ──── people

-- name: lane_keys
SELECT id, key FROM lanes WHERE id = ANY (%(lanes)s::bigint[]);

-- name: lane_by_key
SELECT id FROM lanes WHERE key = %(key)s::text;

-- name: lock_people
SELECT id, epoch, leased, revoked, key FROM lanes WHERE id = ANY (%(lanes)s::bigint[]) OR key = ANY (%(keys)s::text[])
ORDER BY id FOR UPDATE;

-- name: rename_lane
UPDATE lanes SET key = %(key)s, address = %(address)s WHERE id = %(lane)s;

-- name: move_person
UPDATE visitors SET person = %(new)s
WHERE id IN (SELECT id FROM visitors WHERE person = %(old)s::text ORDER BY id FOR NO KEY UPDATE);

-- name: add_alias
INSERT INTO aliases (key, lane, at) VALUES (%(key)s, %(lane)s, {now}) ON CONFLICT (key) DO UPDATE SET lane = excluded.lane, at = excluded.at;

-- name: merge_lane
-- A lane that is put off still waits for its turn, unless something comes that was vouched for.
UPDATE lanes l SET waiting = l.waiting + m.waiting, bytes = l.bytes + m.bytes, verified = l.verified OR m.verified, address = %(address)s,
put_off = l.put_off AND NOT m.verified AND (m.stranger OR m.waiting = 0),
stranger = (l.stranger OR l.waiting = 0) AND (m.stranger OR m.waiting = 0),
identify_digest = NULL,
identify_at = CASE WHEN l.leased THEN -1 END,
ready_at = CASE WHEN l.put_off AND NOT m.verified AND (m.stranger OR m.waiting = 0) THEN l.ready_at
                WHEN l.waiting + m.waiting > 0 THEN coalesce(l.ready_at, {now}) END
FROM lanes m WHERE l.id = %(other)s AND m.id = %(lane)s RETURNING l.put_off;

-- name: move_pushes
-- Behind what waits in the other lane: the order of seq is the order of sends.
WITH moved AS (DELETE FROM pushes WHERE lane = %(lane)s RETURNING *)
INSERT INTO pushes (lane, id, address, trust, kind, body, since, attempts, increments)
SELECT %(other)s, id, address, trust, kind, body, since, attempts, increments FROM moved ORDER BY seq;

-- name: move_dead
UPDATE dead SET lane = %(other)s WHERE lane = %(lane)s;

-- name: move_aliases
UPDATE aliases SET lane = %(other)s WHERE lane = %(lane)s;

-- name: remove_lanes
DELETE FROM lanes WHERE id = ANY (%(lanes)s::bigint[]);

-- name: spellings
-- Every lane key of the people with these: where they moved, and their older ones.
WITH theirs AS (
  SELECT id, key FROM lanes WHERE key = ANY (%(keys)s::text[])
  UNION SELECT l.id, l.key FROM aliases a JOIN lanes l ON l.id = a.lane WHERE a.key = ANY (%(keys)s::text[])
)
SELECT key FROM theirs UNION SELECT a.key FROM aliases a JOIN theirs ON theirs.id = a.lane;

-- name: seen_afters
-- Whoever has come back since the erasure is not touched.
SELECT id, after FROM seen WHERE after_key = ANY (%(keys)s::text[]) AND at <= %(until)s;

-- name: forget_afters
UPDATE seen SET shown = '', after = NULL, after_key = NULL WHERE id = ANY (%(ids)s::text[]);

-- name: remove_pushes
DELETE FROM pushes WHERE lane = ANY (%(lanes)s::bigint[]) RETURNING trust, length(body);

-- name: remove_dead
-- Also letters to the address from before another person had it.
DELETE FROM dead WHERE lane = ANY (%(lanes)s::bigint[]) OR key = ANY (%(keys)s::text[]) RETURNING trust, length(body);

-- name: unhold_visitors
DELETE FROM held WHERE visitor = ANY (%(visitors)s::text[]) RETURNING length(body);

-- name: remove_aliases
DELETE FROM aliases WHERE lane = ANY (%(lanes)s::bigint[]) OR key = ANY (%(keys)s::text[]);

-- name: forget_person
-- The pushes of these visitors belong to nobody.
UPDATE visitors SET person = '#'
WHERE id IN (SELECT id FROM visitors WHERE person = ANY (%(keys)s::text[]) ORDER BY id FOR NO KEY UPDATE);

-- name: add_tombstone
INSERT INTO tombstones (hash, at) SELECT hash, {now} FROM unnest(%(hashes)s::bytea[]) AS h (hash) ORDER BY hash
ON CONFLICT (hash) DO UPDATE SET at = excluded.at;

-- name: empty_lanes
-- Their holders settle them, and then they go.
UPDATE lanes SET waiting = 0, bytes = 0, verified = false, failures = 0, address = NULL, identify_digest = NULL, identify_at = NULL, revoked = true
WHERE id = ANY (%(lanes)s::bigint[]) AND leased;

-- name: remove_idle_lanes
DELETE FROM lanes WHERE id = ANY (%(lanes)s::bigint[]) AND NOT leased;

-- ──── sweep

-- name: expire_held
DELETE FROM held WHERE seq IN (SELECT seq FROM held WHERE since < {now} - %(age)s ORDER BY since LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
RETURNING length(body);

-- name: forget_seen
-- Ids of what is still held stay known.
DELETE FROM seen WHERE id IN (
  SELECT id FROM seen s WHERE at >= %(after)s AND at < {now} - %(age)s AND NOT EXISTS (SELECT FROM held WHERE held.id = s.id)
  ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) RETURNING at;

-- name: forget_visitors
DELETE FROM visitors WHERE id IN (SELECT id FROM visitors WHERE at < {now} - %(age)s ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED);

-- name: forget_shown
-- Nothing is known of them but that they were shown.
DELETE FROM visitors WHERE id IN (
  SELECT id FROM visitors WHERE NOT retired AND NOT identified AND person IS NULL AND at < {now} - %(age)s
  ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
);

-- name: age_out_dead
DELETE FROM dead WHERE seq IN (SELECT seq FROM dead WHERE at < {now} - %(age)s ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
RETURNING trust, length(body);

-- name: lane_step
SELECT max(id) FROM (SELECT id FROM lanes WHERE id > %(after)s ORDER BY id LIMIT %(limit)s) AS step;

-- name: forget_idle_lanes
-- Of whom nothing is known and nothing waits.
DELETE FROM lanes WHERE id IN (
  SELECT id FROM lanes WHERE id > %(after)s AND id <= %(last)s AND NOT verified AND waiting = 0 AND NOT leased AND failures = 0
  AND NOT EXISTS (SELECT FROM dead WHERE dead.lane = lanes.id)
  ORDER BY id FOR UPDATE SKIP LOCKED
);

-- name: forget_tombstones
DELETE FROM tombstones WHERE at < {now} - %(age)s;

-- name: trim_not_offered
DELETE FROM not_offered WHERE (setting, name) NOT IN (
  SELECT setting, name FROM not_offered GROUP BY setting, name ORDER BY max(last) DESC LIMIT %(limit)s
);

-- name: forget_not_offered
DELETE FROM not_offered WHERE (setting, name) IN (SELECT setting, name FROM unnest(%(settings)s::text[], %(names)s::text[]) AS f (setting, name));

-- name: forget_aliases
-- Of lanes that are gone: nothing can be sent to them any more.
DELETE FROM aliases a WHERE NOT EXISTS (SELECT FROM lanes l WHERE l.id = a.lane);

-- name: bring_near
-- Back-offs take minutes: a time that is further ahead was set under a wrong clock. What a node of an older version has put off goes when it said.
UPDATE lanes SET ready_at = {now} WHERE id IN (
  SELECT id FROM lanes WHERE ready_at > {now} + 7200 AND NOT put_off ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
);

-- name: bring_networks_near
-- As `bring_near`: what has left can have taken up two hours (see proxy.core.turns).
-- A weight is the hours since the epoch and the logarithm of a number of turns: 14 more would be a million.
UPDATE networks SET until = least(until, {now} + 7200), rests = CASE WHEN rests > {now} + 7200 THEN {now} ELSE rests END,
weight = least(weight, {now} / 3600 + 14)
WHERE until > {now} + 7200 OR rests > {now} + 7200 OR weight > {now} / 3600 + 14;

-- name: bring_sign_ups_near
UPDATE sign_ups SET at = {now} WHERE at > {now} + 7200;

-- name: bring_schedule_near
UPDATE schedules SET until = {now} + 7200 WHERE name = 'sign-ups' AND until > {now} + 7200;

-- name: forget_networks
-- Nobody in them waits, and their turns are so long ago that they need not be told from those that had none (see proxy.core.turns).
DELETE FROM networks n WHERE waiting = 0 AND rests IS NULL AND until < {now} AND weight < %(weight)s
AND NOT EXISTS (SELECT FROM networks inner_one WHERE inner_one.parent = n.name);

-- name: forget_counters
DELETE FROM counters WHERE name = ANY (%(names)s::text[]);
