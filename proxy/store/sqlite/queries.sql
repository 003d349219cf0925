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
SELECT key, id, verified, waiting, bytes, put_off FROM lanes WHERE key IN (SELECT value FROM json_each(?));

-- name: aliases
-- A JSON array of keys.
SELECT aliases.key, lanes.address, aliases.at FROM aliases JOIN lanes ON lanes.id = aliases.lane
WHERE aliases.key IN (SELECT value FROM json_each(?));

-- name: tombstone
SELECT at FROM tombstones WHERE hash = ?;

-- name: held
SELECT seq, id, body, since FROM held WHERE visitor = ? ORDER BY seq;

-- name: unvouched_bytes
-- See rows.unvouched_bytes.
SELECT sum(value) FROM counters WHERE name = 'gauge:unvouched_bytes' OR (name >= 'gauge:id_bytes:' AND name < 'gauge:id_bytes;');

-- name: lane
-- ?1: pushes that it gains, ?6: the bytes of their bodies. One that is empty is ready now (?2), unless it is put off as a sign-up (?3). ?4: something
-- was vouched for, so that it waits for no turn. ?5: somebody has vouched for the address.
INSERT INTO lanes (key, waiting, bytes, ready_at, put_off, verified, stranger)
VALUES (?7, ?1, ?6, CASE WHEN ?1 > 0 AND NOT ?3 THEN ?2 END, ?3, ?5, ?1 > 0 AND NOT ?4)
ON CONFLICT (key) DO UPDATE SET waiting = waiting + ?1, bytes = bytes + ?6, verified = verified OR ?5,
stranger = CASE WHEN ?1 = 0 THEN stranger ELSE (stranger OR waiting = 0) AND NOT ?4 END,
ready_at = CASE WHEN ?1 > 0 AND ready_at IS NULL AND (?4 OR NOT (put_off OR ?3)) THEN ?2 ELSE ready_at END,
put_off = CASE WHEN ?1 = 0 THEN put_off WHEN ready_at IS NULL AND NOT put_off THEN ?3 ELSE put_off AND NOT ?4 END
RETURNING id, put_off;

-- name: change_lane
-- The same for a lane whose id (?6) is known, and that nothing puts off. ?3: something was vouched for; ?4: somebody has vouched for the address.
UPDATE lanes SET waiting = waiting + ?1, bytes = bytes + ?5, verified = verified OR ?4,
stranger = CASE WHEN ?1 = 0 THEN stranger ELSE (stranger OR waiting = 0) AND NOT ?3 END,
ready_at = CASE WHEN ?1 > 0 AND ready_at IS NULL AND (?3 OR NOT put_off) THEN ?2 ELSE ready_at END,
put_off = CASE WHEN ?1 = 0 THEN put_off ELSE put_off AND NOT ?3 END WHERE id = ?6;

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

-- name: before_claim
-- What shuts the gate, and whether there may be lanes of strangers to claim, ready or put off.
SELECT closure, probe_until, EXISTS (SELECT 1 FROM lanes WHERE stranger = 1 AND ready_at <= ?) OR EXISTS (SELECT 1 FROM sign_ups) FROM gate;

-- name: claimable
SELECT stranger, id, leased, failures, key, address, identify_digest, identify_at
FROM lanes WHERE stranger = ? AND ready_at <= ? ORDER BY ready_at LIMIT ?;

-- name: claimable_lane
SELECT id, leased, failures, key, address, identify_digest, identify_at FROM lanes WHERE id = ?;

-- name: claimable_for_probe
-- Of those that have waited longest, the one that has failed least: a contact of whom SendX always fails must not stand for all.
SELECT stranger, id, leased, failures, key, address, identify_digest, identify_at FROM (
  SELECT * FROM (SELECT * FROM lanes WHERE stranger = 0 AND ready_at <= ?1 ORDER BY ready_at LIMIT 1000)
  UNION ALL
  SELECT * FROM (SELECT * FROM lanes WHERE stranger = 1 AND ready_at <= ?1 ORDER BY ready_at LIMIT 1000)
) ORDER BY failures, ready_at LIMIT ?2;

-- name: lane_head
SELECT seq, id, address, trust, kind, body, since, attempts, increments FROM pushes WHERE lane = ? ORDER BY seq LIMIT ?;

-- name: vouched_waits
SELECT 1 FROM pushes WHERE lane = ? AND trust = 2 LIMIT 1;

-- name: next_ready
SELECT min(at) FROM (
  SELECT min(ready_at) AS at FROM lanes WHERE stranger = 0 AND ready_at IS NOT NULL
  UNION ALL SELECT min(ready_at) FROM lanes WHERE stranger = 1 AND ready_at IS NOT NULL
);

-- name: lease
UPDATE lanes SET epoch = ?, leased = 1, ready_at = ?, put_off = 0, stranger = ? WHERE id = ?;

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

-- name: put_off_again
-- Unless something has come meanwhile that was vouched for, or somebody was erased.
UPDATE lanes SET put_off = 1, ready_at = NULL WHERE id = ? AND waiting > 0 AND stranger = 1;

-- name: forget_lane
DELETE FROM lanes WHERE id = ? AND waiting = 0 AND verified = 0;

-- name: leased
SELECT id FROM lanes WHERE leased = 1;

-- name: bring_near
-- Back-offs take minutes.
UPDATE lanes SET ready_at = ?1 WHERE ready_at > ?1 + 7200;

-- name: bring_schedules_near
-- What has left can have taken up two hours, see proxy.core.turns: in them nothing leaves that would exceed an hour's number.
UPDATE schedules SET until = ?1 + 7200 WHERE name = 'sign-ups' AND until > ?1 + 7200;

-- name: bring_networks_near
-- A weight is the hours since the epoch and the logarithm of a number of turns: 14 more would be a million.
UPDATE networks SET until = min(until, ?1 + 7200), rests = min(rests, ?1), weight = min(weight, ?1 / 3600.0 + 14)
WHERE until > ?1 + 7200 OR rests > ?1 + 7200 OR weight > ?1 / 3600.0 + 14;

-- name: bring_sign_ups_near
UPDATE sign_ups SET at = ?1 WHERE at > ?1 + 7200;

-- name: newest_row
-- When anything was last written that bears a time: each of these has its index.
SELECT max(at) FROM (
  SELECT max(at) AS at FROM seen UNION ALL SELECT max(since) FROM held UNION ALL SELECT max(at) FROM dead UNION ALL SELECT max(at) FROM visitors
);

-- name: end_waits
-- The clock was set back: back-offs end.
UPDATE lanes SET ready_at = ?1 WHERE ready_at > ?1 AND leased = 0;

-- name: end_rests
UPDATE networks SET rests = ?1 WHERE rests > ?1;

-- name: move_schedules
-- The clock was set ahead by ?2 seconds, or back if that is negative, and says ?1 now: what was to last still lasts for as long.
UPDATE schedules SET until = max(?1, until + ?2) WHERE until > ?1 - max(0, ?2) AND name <> 'swept';

-- name: move_networks
UPDATE networks SET until = max(?1, until + ?2) WHERE until > ?1 - max(0, ?2);

-- name: move_weights
-- Of networks that had a turn: the others' are small numbers.
UPDATE networks SET weight = weight + ?1 / 3600.0 WHERE weight > 1000;

-- name: move_sign_ups
-- In their order.
UPDATE sign_ups SET at = min(?1, at + ?2) WHERE at > ?1;

-- name: extend_leases
UPDATE lanes SET ready_at = ready_at + ? WHERE leased = 1;

-- ──── reads

-- name: gate
SELECT closure, probe_until FROM gate;

-- name: counters
SELECT name, value FROM counters ORDER BY name;

-- name: oldest
SELECT since FROM pushes ORDER BY seq LIMIT 1;

-- name: vouched_ready
SELECT min(ready_at) FROM lanes WHERE stranger = 0 AND ready_at IS NOT NULL;

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

-- name: counter
SELECT value FROM counters WHERE name = ?;

-- name: undead
INSERT INTO pushes (lane, id, address, trust, kind, body, since, increments)
SELECT lane, id, address, trust, kind, body, since, ?2 FROM dead WHERE seq = ?1 RETURNING lane;

-- name: lane_regains
-- ?4: it was vouched for.
UPDATE lanes SET waiting = waiting + 1, bytes = bytes + ?3, stranger = (stranger OR waiting = 0) AND NOT ?4,
ready_at = CASE WHEN put_off AND NOT ?4 THEN NULL ELSE coalesce(ready_at, ?2) END, put_off = put_off AND NOT ?4 WHERE id = ?1;

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
DELETE FROM pushes WHERE lane = ? RETURNING trust, length(body);

-- name: merge_lane
-- ?6: nothing that comes to it was vouched for, so that it stays put off.
UPDATE lanes SET waiting = waiting + ?2, bytes = bytes + ?5, verified = max(verified, ?3), identify_digest = NULL,
identify_at = CASE WHEN leased THEN -1 END, stranger = (stranger OR waiting = 0) AND ?6,
ready_at = CASE WHEN waiting + ?2 > 0 AND NOT (put_off AND ?6) THEN coalesce(ready_at, ?4) END, put_off = put_off AND ?6 WHERE id = ?1;

-- name: lane_facts
SELECT waiting, verified, bytes, stranger FROM lanes WHERE id = ?;

-- name: is_put_off
SELECT put_off FROM lanes WHERE id = ?;

-- name: move_dead
UPDATE dead SET lane = ?2 WHERE lane = ?1;

-- name: remove_lane
DELETE FROM lanes WHERE id = ?;

-- name: empty_lane
-- Its holder settles it, and then it goes: what comes meanwhile waits for that.
UPDATE lanes SET waiting = 0, bytes = 0, verified = 0, failures = 0, address = NULL, identify_digest = NULL, identify_at = NULL WHERE id = ?;

-- name: lane_lease
SELECT id, leased, epoch, put_off FROM lanes WHERE key = ?;

-- name: begin_erasure
INSERT INTO erasures (key, at) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET at = ?2;

-- name: erasures
SELECT key, at FROM erasures;

-- name: end_erasure
DELETE FROM erasures WHERE key = ? AND at = ?;

-- name: remove_dead
-- Also letters to the address from before another person had it.
DELETE FROM dead WHERE lane = ?1 OR key = ?2 RETURNING trust, length(body);

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
-- ?5: what was taken back was put off as a sign-up; ?6: something of it was vouched for.
UPDATE lanes SET waiting = waiting + ?2, bytes = bytes + ?3, stranger = (stranger OR waiting = 0) AND NOT ?6,
ready_at = CASE WHEN ready_at IS NULL AND (?6 OR verified OR NOT (put_off OR ?5)) THEN ?4 ELSE ready_at END,
put_off = CASE WHEN ?6 OR verified THEN 0 WHEN ready_at IS NULL AND NOT put_off THEN ?5 ELSE put_off END WHERE id = ?1
RETURNING put_off;

-- name: held_to_end
INSERT INTO held (visitor, id, body, since) SELECT visitor, id, body, since FROM held WHERE visitor = ?1 AND seq <= ?2 ORDER BY seq;

-- name: remove_held_first
DELETE FROM held WHERE visitor = ? AND seq <= ?;

-- name: held_tail
SELECT max(seq) FROM held WHERE visitor = ?;

-- ──── sign_ups

-- name: add_sign_ups
-- A JSON array of lane and client.
INSERT INTO sign_ups (lane, client, at) SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), ?2 FROM json_each(?1) WHERE true
ON CONFLICT (lane, client) DO NOTHING RETURNING client;

-- name: remove_sign_ups
-- A JSON array of lanes.
DELETE FROM sign_ups WHERE lane IN (SELECT value FROM json_each(?)) RETURNING client;

-- name: wake
-- A JSON array of clients.
UPDATE networks SET rests = NULL WHERE rests IS NOT NULL AND name IN (SELECT value FROM json_each(?)) RETURNING name, waiting;

-- name: wake_due
UPDATE networks SET rests = NULL WHERE name IN (SELECT name FROM networks WHERE rests <= ? ORDER BY rests LIMIT ?) RETURNING name, waiting;

-- name: resting
-- A JSON array of clients.
SELECT name, rests FROM networks WHERE rests IS NOT NULL AND name IN (SELECT value FROM json_each(?));

-- name: rest
UPDATE networks SET rests = ? WHERE name = ? RETURNING waiting;

-- name: count_waiting
-- A JSON array of name, parent and what is added. ?2: the weight of a network that is new.
INSERT INTO networks (name, parent, waiting, weight)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), ?2 FROM json_each(?1) WHERE true
ON CONFLICT (name) DO UPDATE SET waiting = waiting + excluded.waiting;

-- name: waiting_for_turns
SELECT EXISTS (SELECT 1 FROM networks WHERE parent = '' AND waiting > 0 AND rests IS NULL), (SELECT min(rests) FROM networks WHERE rests IS NOT NULL);

-- name: least_served
SELECT name, weight, until FROM networks WHERE parent = ? AND waiting > 0 AND rests IS NULL ORDER BY weight LIMIT 1;

-- name: first_sign_up
SELECT lane, at FROM sign_ups WHERE client = ? ORDER BY at, seq LIMIT 1;

-- name: client_has_left
UPDATE networks SET until = ? WHERE name = ?;

-- name: weigh
UPDATE networks SET weight = ? WHERE name = ?;

-- name: uncount_all
UPDATE networks SET waiting = 0, rests = NULL;

-- name: clients_waiting
SELECT client, count(*) FROM sign_ups GROUP BY client;

-- name: sign_ups
SELECT seq, lane, coalesce(lanes.address, (SELECT address FROM pushes WHERE lane = lanes.id ORDER BY seq LIMIT 1), key), client, at, waiting
FROM sign_ups JOIN lanes ON lanes.id = lane WHERE seq > ? ORDER BY seq LIMIT ?;

-- name: empty_put_off
UPDATE lanes SET waiting = 0, bytes = 0, failures = 0, put_off = 0 WHERE id = ? AND put_off;

-- name: forget_typed
-- As after an erasure: these visitors are nobody's, and their next push waits for a turn as another sign-up.
UPDATE visitors SET person = '#' WHERE person = (SELECT key FROM lanes WHERE id = ?);

-- name: expire_sign_ups
DELETE FROM sign_ups WHERE seq IN (SELECT seq FROM sign_ups WHERE at < ? LIMIT ?) RETURNING lane, client;

-- name: waits_for_turn
SELECT 1 FROM sign_ups WHERE lane = ? LIMIT 1;

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
DELETE FROM dead WHERE seq IN (SELECT seq FROM dead WHERE at < ? LIMIT ?) RETURNING trust, length(body);

-- name: forget_lanes
DELETE FROM lanes WHERE id > ? AND id <= ? AND verified = 0 AND waiting = 0 AND leased = 0 AND failures = 0
AND NOT EXISTS (SELECT 1 FROM dead WHERE dead.lane = lanes.id);

-- name: lane_step
SELECT max(id) FROM (SELECT id FROM lanes WHERE id > ? ORDER BY id LIMIT ?);

-- name: forget_networks
-- Served long ago, as if never.
DELETE FROM networks WHERE waiting = 0 AND until <= ? AND weight < ?;

-- name: id_gauges
SELECT name, value FROM counters WHERE name >= 'gauge:id_bytes:' AND name < 'gauge:id_bytes;';

-- name: forget_counter
DELETE FROM counters WHERE name = ?;

-- name: forget_tombstones
DELETE FROM tombstones WHERE at < ?;

-- name: trim_not_offered
DELETE FROM not_offered WHERE (setting, name) NOT IN (SELECT setting, name FROM not_offered ORDER BY last DESC LIMIT ?);

-- name: forget_not_offered
DELETE FROM not_offered WHERE setting = ? AND name = ?;

-- name: forget_aliases
-- Of lanes that are gone: nothing can be sent to them any more.
DELETE FROM aliases WHERE lane NOT IN (SELECT id FROM lanes);
