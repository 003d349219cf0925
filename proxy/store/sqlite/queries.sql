-- The queries of the SQLite outbox by name, in sections named after the module that uses them, or uses them first. Times are Unix seconds.
-- What tables and columns mean is in schema/.

-- ──── appends

-- name: schedule
SELECT until FROM schedules WHERE name = ?;

-- name: set_schedule
INSERT INTO schedules (name, until) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET until = ?2;

-- name: visitors
-- A JSON array of ids.
SELECT w.value, coalesce(v.retired, 0), CASE WHEN v.identified THEN v.at END, v.person, (SELECT count(*) FROM held WHERE visitor = w.value),
v.shown, v.shown_by
FROM json_each(?) w LEFT JOIN visitors v ON v.id = w.value;

-- name: seen
-- A JSON array of ids.
SELECT id, shown, after, at FROM seen WHERE id IN (SELECT value FROM json_each(?));

-- name: lanes
-- A JSON array of keys.
SELECT key, id, verified, waiting, bytes FROM lanes WHERE key IN (SELECT value FROM json_each(?));

-- name: aliases
-- A JSON array of keys.
SELECT aliases.key, lanes.address, aliases.at FROM aliases JOIN lanes ON lanes.id = aliases.lane
WHERE aliases.key IN (SELECT value FROM json_each(?));

-- name: tombstone
SELECT at FROM tombstones WHERE hash = ?;

-- name: held
SELECT seq, id, body, since FROM held WHERE visitor = ? ORDER BY seq;

-- name: counter
SELECT value FROM counters WHERE name = ?;

-- name: lane
-- A lane that waits for anything keeps its time; an empty one is ready at ?2. ?3: that is put off, as a sign-up; ?4: no matter how long it
-- was put off, now (?6) it goes. ?5: somebody has vouched for it. ?7: bytes of the bodies.
INSERT INTO lanes (key, waiting, bytes, ready_at, put_off, verified) VALUES (?8, ?1, ?7, CASE WHEN ?1 > 0 THEN ?2 END, ?3, ?5)
ON CONFLICT (key) DO UPDATE SET waiting = waiting + ?1, bytes = bytes + ?7, verified = verified OR ?5,
ready_at = CASE WHEN ?1 = 0 THEN ready_at WHEN ready_at IS NULL THEN ?2 WHEN put_off AND ?4 THEN ?6 ELSE ready_at END,
put_off = CASE WHEN ?1 = 0 THEN put_off WHEN ready_at IS NULL THEN ?3 ELSE put_off AND NOT ?4 END
RETURNING id;

-- name: change_lane
-- The same for a lane whose id (?8) is known.
UPDATE lanes SET waiting = waiting + ?1, bytes = bytes + ?7, verified = verified OR ?5,
ready_at = CASE WHEN ?1 = 0 THEN ready_at WHEN ready_at IS NULL THEN ?2 WHEN put_off AND ?4 THEN ?6 ELSE ready_at END,
put_off = CASE WHEN ?1 = 0 THEN put_off WHEN ready_at IS NULL THEN ?3 ELSE put_off AND NOT ?4 END WHERE id = ?8;

-- name: enqueue
INSERT INTO pushes (lane, id, address, trust, kind, body, since, increments) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: hold
INSERT INTO held (visitor, id, body, since) VALUES (?, ?, ?, ?);

-- name: unhold
DELETE FROM held WHERE seq = ?;

-- name: change_visitor
-- ?3: retired; ?4: identified; ?5: lane key of the person, NULL: as it is; ?6: shown, by whom; that alone keeps an identified one's time.
INSERT INTO visitors (id, at, retired, identified, person, shown, shown_by)
VALUES (?1, ?2, ?3, ?4, ?5, CASE WHEN ?6 IS NOT NULL THEN ?2 END, ?6)
ON CONFLICT (id) DO UPDATE SET at = CASE WHEN identified AND NOT ?3 AND NOT ?4 AND ?5 IS NULL THEN at ELSE ?2 END,
retired = retired OR ?3, identified = identified OR ?4, person = coalesce(?5, person), shown = coalesce(shown, excluded.shown),
shown_by = coalesce(shown_by, excluded.shown_by);

-- name: end_alias
DELETE FROM aliases WHERE key = ?;

-- name: remember
INSERT INTO seen (id, at, shown, after) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING;

-- name: not_offered
-- Anybody can ask for anything: once the table is full (?5 rows), only what it lists is counted on.
INSERT INTO not_offered (setting, name, count, last) SELECT ?1, ?2, ?3, ?4
WHERE EXISTS (SELECT 1 FROM not_offered WHERE setting = ?1 AND name = ?2) OR (SELECT count(*) FROM not_offered) < ?5
ON CONFLICT (setting, name) DO UPDATE SET count = count + ?3, last = excluded.last;

-- ──── leases

-- name: move_gate
UPDATE gate SET closure = ?, probe_until = NULL;

-- name: probe
UPDATE gate SET probe_until = ?;

-- name: end_probe
UPDATE gate SET probe_until = NULL WHERE probe_until IS NOT NULL;

-- name: claimable
SELECT id, leased, failures, key, address, identify_digest, identify_at FROM lanes WHERE ready_at <= ? ORDER BY ready_at LIMIT ?;

-- name: claimable_for_probe
-- Of those that have waited longest, the one that has failed least: a contact of whom SendX always fails must not stand for all.
SELECT id, leased, failures, key, address, identify_digest, identify_at
FROM (SELECT * FROM lanes WHERE ready_at <= ? ORDER BY ready_at LIMIT 1000) ORDER BY failures, ready_at LIMIT ?;

-- name: lane_head
SELECT seq, id, address, trust, kind, body, since, attempts, increments FROM pushes WHERE lane = ? ORDER BY seq LIMIT ?;

-- name: vouched_waits
SELECT 1 FROM pushes WHERE lane = ? AND trust = 2 LIMIT 1;

-- name: lease
UPDATE lanes SET epoch = ?, leased = 1, ready_at = ?, put_off = 0 WHERE id = ?;

-- name: start
UPDATE pushes SET started = 1 WHERE seq = ?;

-- name: lease_holds
SELECT 1 FROM lanes WHERE id = ? AND epoch = ? AND leased = 1;

-- name: push
SELECT 1 FROM pushes WHERE seq = ?;

-- name: push_id
SELECT id FROM pushes WHERE seq = ?;

-- name: remove
DELETE FROM pushes WHERE seq = ?;

-- name: attempted
UPDATE pushes SET attempts = attempts + 1 WHERE seq = ?;

-- name: bury
-- lane_key is Python's.
INSERT INTO dead (seq, lane, id, address, trust, kind, body, since, attempts, reason, detail, at, key)
SELECT seq, lane, id, address, trust, kind, body, since, attempts + ?2, ?3, ?4, ?5, lane_key(address) FROM pushes WHERE seq = ?1;

-- name: started
SELECT seq, length(body) FROM pushes WHERE lane = ? AND started = 1 ORDER BY seq;

-- name: unstart
UPDATE pushes SET started = 0 WHERE seq = ?;

-- name: release
-- ?5: ?6 and ?7 are what SendX has of the contact now. Merging marks a lane under a lease with -1: what is known under that lease is void.
-- A lane that is empty has nothing to back off from, and can be forgotten.
UPDATE lanes SET waiting = waiting - ?2, bytes = CASE WHEN waiting > ?2 THEN bytes - ?8 ELSE 0 END,
leased = 0, failures = CASE WHEN waiting > ?2 THEN ?3 ELSE 0 END,
ready_at = CASE WHEN waiting > ?2 THEN ?4 END,
identify_digest = CASE WHEN NOT ?5 THEN identify_digest WHEN identify_at = -1 THEN NULL ELSE ?6 END,
identify_at = CASE WHEN identify_at = -1 THEN NULL WHEN NOT ?5 THEN identify_at ELSE ?7 END
WHERE id = ?1;

-- name: forget_lane
DELETE FROM lanes WHERE id = ? AND waiting = 0 AND verified = 0;

-- name: leased
SELECT id FROM lanes WHERE leased = 1;

-- name: bring_near
-- Back-offs take minutes, sign-ups are put off for days; neither for a month.
UPDATE lanes SET ready_at = ?1 WHERE ready_at > ?1 + CASE WHEN put_off THEN 2592000 ELSE 7200 END;

-- name: newest_row
-- When anything was last written that bears a time: each of these has its index.
SELECT max(at) FROM (
  SELECT max(at) AS at FROM seen UNION ALL SELECT max(since) FROM held UNION ALL SELECT max(at) FROM dead UNION ALL SELECT max(at) FROM visitors
);

-- name: end_waits
-- The clock was set back by ?2 seconds: back-offs end, sign-ups keep their turns.
UPDATE lanes SET ready_at = CASE WHEN put_off THEN max(?1, ready_at - ?2) ELSE ?1 END WHERE ready_at > ?1 AND leased = 0;

-- name: advance_schedules
UPDATE schedules SET until = max(?1, until - ?2) WHERE until > ?1 AND name <> 'swept';

-- name: extend_leases
UPDATE lanes SET ready_at = ready_at + ? WHERE leased = 1;

-- ──── reads

-- name: gate
SELECT closure, probe_until FROM gate;

-- name: counters
SELECT name, value FROM counters ORDER BY name;

-- name: oldest
SELECT since FROM pushes ORDER BY seq LIMIT 1;

-- name: refused_names
SELECT name, setting, count, last FROM not_offered ORDER BY count DESC, last DESC LIMIT ?;

-- name: dead_letters
-- Conditions are put behind it.
SELECT seq, id, address, kind, trust, reason, detail, at, since, attempts, body FROM dead WHERE seq > :after

-- name: lane_by_key
SELECT id, key FROM lanes WHERE key = ?;

-- name: alias_lane
SELECT lanes.id, lanes.key FROM aliases JOIN lanes ON lanes.id = aliases.lane WHERE aliases.key = ?;

-- ──── outbox

-- name: unhold_visitor
DELETE FROM held WHERE visitor = ? RETURNING length(body);

-- name: tally
INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;

-- name: next_ready
SELECT min(ready_at) FROM lanes WHERE ready_at IS NOT NULL;

-- name: undead
INSERT INTO pushes (lane, id, address, trust, kind, body, since, increments)
SELECT lane, id, address, trust, kind, body, since, ?2 FROM dead WHERE seq = ?1 RETURNING lane;

-- name: lane_regains
UPDATE lanes SET waiting = waiting + 1, bytes = bytes + ?3, ready_at = coalesce(ready_at, ?2) WHERE id = ?1;

-- name: remove_letter
DELETE FROM dead WHERE seq = ?;

-- ──── people

-- name: lane_aliases
SELECT key FROM aliases WHERE lane = ?;

-- name: lane_key
SELECT key FROM lanes WHERE id = ?;

-- name: rename_lane
UPDATE lanes SET key = ?2, address = ?3 WHERE id = ?1;

-- name: readdress_lane
UPDATE lanes SET address = ?2 WHERE id = ?1;

-- name: move_person
UPDATE visitors SET person = ?2 WHERE person = ?1;

-- name: add_alias
INSERT INTO aliases (key, lane, at) VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE SET lane = ?2, at = ?3;

-- name: move_aliases
UPDATE aliases SET lane = ?2 WHERE lane = ?1;

-- name: move_pushes
-- Behind what waits in the other lane: the order of seq is the order of sends.
INSERT INTO pushes (lane, id, address, trust, kind, body, since, attempts, increments)
SELECT ?2, id, address, trust, kind, body, since, attempts, increments FROM pushes WHERE lane = ?1 ORDER BY seq;

-- name: remove_pushes
DELETE FROM pushes WHERE lane = ?;

-- name: merge_lane
UPDATE lanes SET waiting = waiting + ?2, bytes = bytes + ?5, verified = max(verified, ?3), identify_digest = NULL,
identify_at = CASE WHEN leased THEN -1 END,
ready_at = CASE WHEN waiting + ?2 > 0 THEN coalesce(ready_at, ?4) END WHERE id = ?1;

-- name: lane_facts
SELECT waiting, verified, bytes FROM lanes WHERE id = ?;

-- name: move_dead
UPDATE dead SET lane = ?2 WHERE lane = ?1;

-- name: remove_lane
DELETE FROM lanes WHERE id = ?;

-- name: empty_lane
-- Its holder settles it, and then it goes.
UPDATE lanes SET waiting = 0, bytes = 0, verified = 0, failures = 0, address = NULL, identify_digest = NULL, identify_at = NULL WHERE id = ?;

-- name: lane_lease
SELECT id, leased, epoch FROM lanes WHERE key = ?;

-- name: begin_erasure
INSERT INTO erasures (key, at) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET at = ?2;

-- name: erasures
SELECT key, at FROM erasures;

-- name: end_erasure
DELETE FROM erasures WHERE key = ? AND at = ?;

-- name: remove_dead
-- Also letters to the address from before another person had it.
DELETE FROM dead WHERE lane = ?1 OR key = ?2;

-- name: remove_aliases
DELETE FROM aliases WHERE lane = ?1 OR key = ?2;

-- name: forget_person
-- The pushes of these visitors belong to nobody.
UPDATE visitors SET person = '#' WHERE person IN (?, ?);

-- name: seen_afters
-- A step through all of them, in the order of their ids.
SELECT id, at, after FROM seen WHERE id > ? ORDER BY id LIMIT ?;

-- name: forget_after
UPDATE seen SET shown = '', after = NULL WHERE id = ?;

-- name: add_tombstone
INSERT INTO tombstones (hash, at) VALUES (?1, ?2) ON CONFLICT (hash) DO UPDATE SET at = ?2;

-- ──── adoption

-- name: adopted
-- By what the file and its log held.
SELECT 1 FROM meta WHERE name >= 'adopted:' AND name < 'adopted;' AND value = ?;

-- name: adopted_names
SELECT substr(name, 9) FROM meta WHERE name >= 'adopted:' AND name < 'adopted;';

-- name: note_adopted
INSERT INTO meta (name, value) VALUES ('adopted:' || ?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2;

-- name: is_seen
SELECT 1 FROM seen WHERE id = ?;

-- name: is_dead
SELECT 1 FROM dead WHERE id = ?;

-- name: adopt_tombstone
INSERT INTO tombstones (hash, at) VALUES (?1, ?2) ON CONFLICT (hash) DO UPDATE SET at = max(at, ?2);

-- name: adopt_erasure
INSERT INTO erasures (key, at) VALUES (?, ?) ON CONFLICT (key) DO NOTHING;

-- name: adopt_visitor
INSERT INTO visitors (id, at, retired, identified, person, shown, shown_by) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET retired = max(retired, excluded.retired), identified = max(identified, excluded.identified),
person = coalesce(person, excluded.person), shown = coalesce(shown, excluded.shown), shown_by = coalesce(shown_by, excluded.shown_by);

-- name: adopt_lane
INSERT INTO lanes (key, address, verified) VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE SET verified = max(verified, ?3) RETURNING id;

-- name: adopt_alias
INSERT INTO aliases (key, lane, at) SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM lanes WHERE key = ?1) ON CONFLICT (key) DO NOTHING;

-- name: lane_tail
SELECT leased, (SELECT max(seq) FROM pushes WHERE lane = lanes.id) FROM lanes WHERE id = ?;

-- name: adopt_push
INSERT INTO pushes (lane, id, address, trust, kind, body, since, attempts, increments) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq;

-- name: adopt_dead
INSERT INTO dead (seq, lane, id, address, trust, kind, body, since, attempts, reason, detail, at, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: pushes_to_end
-- Behind what was taken back: they are younger.
INSERT INTO pushes (lane, id, address, trust, kind, body, since, attempts, increments)
SELECT lane, id, address, trust, kind, body, since, attempts, increments FROM pushes WHERE lane = ?1 AND seq <= ?2 ORDER BY seq;

-- name: remove_first
DELETE FROM pushes WHERE lane = ? AND seq <= ?;

-- name: lane_gains
-- ?5: what was taken back is put off, as a sign-up, until ?4.
UPDATE lanes SET waiting = waiting + ?2, bytes = bytes + ?3,
ready_at = CASE WHEN ready_at IS NULL OR (put_off AND NOT ?5) THEN ?4 ELSE ready_at END,
put_off = CASE WHEN ready_at IS NULL THEN ?5 ELSE put_off AND ?5 END WHERE id = ?1;

-- name: held_to_end
INSERT INTO held (visitor, id, body, since) SELECT visitor, id, body, since FROM held WHERE visitor = ?1 AND seq <= ?2 ORDER BY seq;

-- name: remove_held_first
DELETE FROM held WHERE visitor = ? AND seq <= ?;

-- name: held_tail
SELECT max(seq) FROM held WHERE visitor = ?;

-- ──── sweep

-- name: expire_held
DELETE FROM held WHERE seq IN (SELECT seq FROM held WHERE since < ? LIMIT ?) RETURNING length(body);

-- name: forget_seen
DELETE FROM seen WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM held WHERE held.id = ?1);

-- name: old_seen
SELECT id, at FROM seen WHERE at >= ? AND at < ? ORDER BY at LIMIT ?;

-- name: forget_visitors
DELETE FROM visitors WHERE id IN (SELECT id FROM visitors WHERE at < ? LIMIT ?);

-- name: forget_shown
-- Nothing is known of them but that they were shown.
DELETE FROM visitors WHERE id IN (
  SELECT id FROM visitors INDEXED BY visitors_shown WHERE retired = 0 AND identified = 0 AND person IS NULL AND at < ? LIMIT ?
);

-- name: age_out_dead
DELETE FROM dead WHERE seq IN (SELECT seq FROM dead WHERE at < ? LIMIT ?);

-- name: forget_lanes
DELETE FROM lanes WHERE id > ? AND id <= ? AND verified = 0 AND waiting = 0 AND leased = 0 AND failures = 0
AND NOT EXISTS (SELECT 1 FROM dead WHERE dead.lane = lanes.id);

-- name: lane_step
SELECT max(id) FROM (SELECT id FROM lanes WHERE id > ? ORDER BY id LIMIT ?);

-- name: forget_tombstones
DELETE FROM tombstones WHERE at < ?;

-- name: trim_not_offered
DELETE FROM not_offered WHERE (setting, name) NOT IN (SELECT setting, name FROM not_offered ORDER BY last DESC LIMIT ?);

-- name: forget_not_offered
DELETE FROM not_offered WHERE setting = ? AND name = ?;

-- name: forget_aliases
-- Of lanes that are gone: nothing can be sent to them any more.
DELETE FROM aliases WHERE lane NOT IN (SELECT id FROM lanes);
