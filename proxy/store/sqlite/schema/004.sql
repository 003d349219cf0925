-- stranger: nothing that waits in the lane was vouched for. put_off: it waits for its turn as a sign-up, and its ready_at is NULL until then.
ALTER TABLE lanes ADD COLUMN stranger INTEGER NOT NULL DEFAULT 0;
DROP INDEX lanes_ready;
UPDATE lanes SET stranger = 1 WHERE waiting > 0 AND NOT EXISTS (SELECT 1 FROM pushes WHERE lane = lanes.id AND trust = 2);
CREATE INDEX lanes_ready ON lanes (stranger, ready_at) WHERE ready_at IS NOT NULL;

-- Lanes that are put off, by each client that typed the address: that of `at` is next among a client's. AUTOINCREMENT: pages of them are read by seq.
CREATE TABLE sign_ups (
  seq    INTEGER PRIMARY KEY AUTOINCREMENT,
  lane   INTEGER NOT NULL,
  client TEXT    NOT NULL,
  at     REAL    NOT NULL,
  UNIQUE (lane, client)
);
CREATE INDEX sign_ups_client ON sign_ups (client, at, seq);
CREATE INDEX sign_ups_at ON sign_ups (at);

-- The networks of those clients within one another; a client is the innermost, and '' the parent of the widest. waiting: rows of `sign_ups` of clients
-- within it that do not rest. weight: how much it was served lately. until: when what has left for a client would have left evenly. rests: a client whose
-- next sign-up may not leave before then. See proxy.core.turns.
CREATE TABLE networks (
  name    TEXT PRIMARY KEY,
  parent  TEXT    NOT NULL,
  waiting INTEGER NOT NULL DEFAULT 0,
  weight  REAL    NOT NULL DEFAULT 0,
  until   REAL    NOT NULL DEFAULT 0,
  rests   REAL
) WITHOUT ROWID;
CREATE INDEX networks_next ON networks (parent, weight) WHERE waiting > 0 AND rests IS NULL;
CREATE INDEX networks_rests ON networks (rests) WHERE rests IS NOT NULL;

-- A booked time does not count any more, and nobody knows who typed these addresses.
INSERT INTO sign_ups (lane, client, at)
SELECT id, 'unknown', (SELECT since FROM pushes WHERE lane = lanes.id ORDER BY seq LIMIT 1) FROM lanes
WHERE put_off AND leased = 0 AND EXISTS (SELECT 1 FROM pushes WHERE lane = lanes.id) ORDER BY ready_at;
INSERT INTO networks (name, parent, waiting) SELECT client, '', count(*) FROM sign_ups GROUP BY client;
UPDATE lanes SET put_off = EXISTS (SELECT 1 FROM sign_ups WHERE lane = lanes.id) WHERE put_off;
UPDATE lanes SET ready_at = NULL WHERE put_off;
UPDATE schedules SET until = min(until, strftime('%s', 'now') + 3600) WHERE name = 'sign-ups';

-- Bytes of what nobody has vouched for: see proxy.store.rows.
DELETE FROM counters WHERE name = 'gauge:held_bytes';
INSERT INTO counters SELECT 'gauge:sign_ups', count(*) FROM lanes WHERE put_off;
INSERT INTO counters SELECT 'gauge:unvouched_bytes', coalesce(sum(size), 0) FROM (
  SELECT length(body) + 200 AS size FROM held
  UNION ALL SELECT length(body) + 500 FROM pushes WHERE trust <> 2
  UNION ALL SELECT length(body) + 500 FROM dead WHERE trust <> 2
);
INSERT INTO counters SELECT 'gauge:id_bytes:' || CAST(since / 86400 AS INTEGER), 200 * count(*) FROM (
  SELECT since FROM held UNION ALL SELECT since FROM pushes WHERE trust <> 2 UNION ALL SELECT since FROM dead WHERE trust <> 2
) GROUP BY 1;
