-- What shuts the gate to SendX (JSON, NULL while it is open), and until when a probe is out.
CREATE TABLE gate (closure BLOB, probe_until REAL);
INSERT INTO gate VALUES (NULL, NULL);
ALTER TABLE lanes ADD COLUMN put_off INTEGER NOT NULL DEFAULT 0;
-- How much there is now, kept with every transition: counting takes too long.
INSERT INTO counters SELECT 'gauge:waiting', count(*) FROM pushes;
INSERT INTO counters SELECT 'gauge:holding', count(*) FROM held;
INSERT INTO counters SELECT 'gauge:dead', count(*) FROM dead;
CREATE INDEX dead_id ON dead (id);
CREATE INDEX dead_reason ON dead (reason, seq);
-- The lane key of the address.
ALTER TABLE dead ADD COLUMN key TEXT NOT NULL DEFAULT '';
UPDATE dead SET key = lane_key(address);
CREATE INDEX dead_key ON dead (key);
-- People whose erasure has begun: their lane keys, until it is done.
CREATE TABLE erasures (key TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX lanes_leased ON lanes (id) WHERE leased = 1;
CREATE INDEX visitors_left ON visitors (left) WHERE left IS NOT NULL;

-- What happens no more often than its rate: when it is free again.
CREATE TABLE schedules (name TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
