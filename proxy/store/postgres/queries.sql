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
SELECT {now}, (SELECT coalesce(sum(value), 0)::bigint FROM counters WHERE name = 'gauge:held_bytes'),
  trim(current_setting('synchronous_standby_names')) <> '';

-- name: seen
SELECT id, shown, after, at FROM seen WHERE id = ANY (%(ids)s::text[]);

-- name: people
-- What is known of each lane key; the hashes are those of its tombstone.
SELECT p.key, l.id, l.verified, l.waiting, l.bytes, moved.address, a.at, t.at
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
-- A lane that waits for anything keeps its time. One that was put off goes at once when somebody who is vouched for comes.
UPDATE lanes l SET waiting = l.waiting + c.gained, bytes = l.bytes + c.bytes, verified = l.verified OR c.verify,
ready_at = CASE WHEN c.gained = 0 THEN l.ready_at WHEN l.ready_at IS NULL THEN {now} + c.delay
                WHEN l.put_off AND c.vouched THEN {now} ELSE l.ready_at END,
put_off = CASE WHEN c.gained = 0 THEN l.put_off WHEN l.ready_at IS NULL THEN c.put_off ELSE l.put_off AND NOT c.vouched END
FROM unnest(%(keys)s::text[], %(gained)s::int[], %(bytes)s::bigint[], %(delays)s::float8[], %(put_off)s::bool[], %(vouched)s::bool[],
            %(verify)s::bool[])
  AS c (key, gained, bytes, delay, put_off, vouched, verify)
WHERE l.key = c.key;

-- name: new_lanes
INSERT INTO lanes (key, waiting, bytes, ready_at, put_off, verified)
SELECT key, gained, bytes, CASE WHEN gained > 0 THEN {now} + delay END, put_off, verify
FROM unnest(%(keys)s::text[], %(gained)s::int[], %(bytes)s::bigint[], %(delays)s::float8[], %(put_off)s::bool[], %(vouched)s::bool[],
            %(verify)s::bool[])
  AS c (key, gained, bytes, delay, put_off, vouched, verify)
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

-- name: claimable
-- Claims nothing while the gate is shut; share_lock keeps others from moving the gate until this transaction ends. %(floor)s: see `floor`.
SELECT id, leased, failures, key, address, identify_digest, identify_at FROM lanes
WHERE ready_at >= %(floor)s AND ready_at <= {now} AND (SELECT closure IS NULL FROM gate)
ORDER BY ready_at LIMIT %(lanes)s FOR NO KEY UPDATE SKIP LOCKED;

-- name: claimable_for_probe
-- Of those that have waited longest, the one that has failed least: a contact of whom SendX always fails must not stand for all.
SELECT id, leased, failures, key, address, identify_digest, identify_at FROM lanes
WHERE id IN (SELECT id FROM lanes WHERE ready_at >= %(floor)s AND ready_at <= {now} ORDER BY ready_at LIMIT 1000) AND ready_at <= {now}
AND (SELECT probe_until IS NULL OR NOT (probe_until > {now} AND probe_until <= {now} + %(seconds)s) FROM gate)
ORDER BY failures, ready_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;

-- name: heads
SELECT p.seq, p.id, p.address, p.trust, p.kind, p.body, p.since, p.attempts, p.increments, l.lane
FROM unnest(%(lanes)s::bigint[]) WITH ORDINALITY AS l (lane, place)
CROSS JOIN LATERAL (SELECT * FROM pushes WHERE lane = l.lane ORDER BY seq LIMIT %(per_lane)s) AS p
ORDER BY l.place, p.seq;

-- name: vouched
SELECT l.lane FROM unnest(%(lanes)s::bigint[]) AS l (lane) WHERE EXISTS (SELECT FROM pushes p WHERE p.lane = l.lane AND p.trust = 2);

-- name: lease
-- An epoch never comes twice, nor after the database was set back to an older state. %(epoch)s: the time in microseconds.
UPDATE lanes SET epoch = greatest(epoch + 1, %(epoch)s::bigint), leased = true, revoked = false, ready_at = {now} + %(seconds)s,
put_off = false WHERE id = ANY (%(lanes)s::bigint[]) RETURNING id, epoch;

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
-- A lane that is empty has nothing to back off from, and can be forgotten. A node of an older version counts no bytes.
UPDATE lanes l SET waiting = l.waiting - s.gone, bytes = CASE WHEN l.waiting > s.gone THEN greatest(l.bytes - s.freed, 0) ELSE 0 END,
leased = false, revoked = false, failures = CASE WHEN l.waiting > s.gone THEN s.failures ELSE 0 END,
ready_at = CASE WHEN l.waiting > s.gone THEN {now} + greatest(s.delay, 0) END,
identify_digest = CASE WHEN NOT s.learned THEN l.identify_digest WHEN l.identify_at = -1 THEN NULL ELSE s.digest END,
identify_at = CASE WHEN l.identify_at = -1 THEN NULL WHEN NOT s.learned THEN l.identify_at ELSE s.digest_at END
FROM unnest(%(lanes)s::bigint[], %(gone)s::bigint[], %(failures)s::bigint[], %(delays)s::float8[], %(learned)s::bool[],
            %(digests)s::bytea[], %(digest_ats)s::float8[], %(freed)s::bigint[])
  AS s (lane, gone, failures, delay, learned, digest, digest_at, freed)
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

-- ──── reads

-- name: tally
INSERT INTO counters AS c (name, shard, value)
SELECT name, {shard}, value FROM unnest(%(names)s::text[], %(values)s::bigint[]) AS t (name, value)
ORDER BY name ON CONFLICT (name, shard) DO UPDATE SET value = c.value + excluded.value;

-- name: counters
SELECT name, sum(value)::bigint FROM counters GROUP BY name ORDER BY name;

-- name: oldest
SELECT since FROM pushes ORDER BY seq LIMIT 1;

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
SELECT lane, id, address, trust, kind, body, since, increments FROM gone ORDER BY seq RETURNING lane, length(body);

-- name: lanes_regain
UPDATE lanes l SET waiting = l.waiting + c.gained, bytes = l.bytes + c.bytes, ready_at = coalesce(l.ready_at, {now})
FROM unnest(%(lanes)s::bigint[], %(gained)s::bigint[], %(bytes)s::bigint[]) AS c (lane, gained, bytes) WHERE l.id = c.lane;

-- name: discard
DELETE FROM dead WHERE seq = ANY (%(seqs)s::bigint[]);

-- ──── outbox

-- name: next_ready
-- Seconds until the first lane is ready, NULL if more than `ahead`, and the time.
SELECT min(ready_at) - {now}, {now} FROM lanes WHERE ready_at >= %(floor)s AND ready_at <= {now} + %(ahead)s;

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
UPDATE lanes l SET waiting = l.waiting + m.waiting, bytes = l.bytes + m.bytes, verified = l.verified OR m.verified, address = %(address)s,
identify_digest = NULL,
identify_at = CASE WHEN l.leased THEN -1 END, ready_at = CASE WHEN l.waiting + m.waiting > 0 THEN coalesce(l.ready_at, {now}) END
FROM lanes m WHERE l.id = %(other)s AND m.id = %(lane)s;

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
DELETE FROM pushes WHERE lane = ANY (%(lanes)s::bigint[]);

-- name: remove_dead
-- Also letters to the address from before another person had it.
DELETE FROM dead WHERE lane = ANY (%(lanes)s::bigint[]) OR key = ANY (%(keys)s::text[]);

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
DELETE FROM dead WHERE seq IN (SELECT seq FROM dead WHERE at < {now} - %(age)s ORDER BY at LIMIT %(limit)s FOR UPDATE SKIP LOCKED);

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
-- Back-offs take minutes, sign-ups are put off for days; neither for a month: a time that is further ahead was set under a wrong clock.
UPDATE lanes SET ready_at = {now} WHERE id IN (
  SELECT id FROM lanes WHERE ready_at > {now} + 7200 AND (NOT put_off OR ready_at > {now} + 2592000)
  ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
);
