-- Times are Unix seconds.

-- One row a person. address: set by a change of address that SendX confirmed; pushes for another key are sent to it. ready_at: when the head
-- may be claimed; NULL when nothing waits; under a lease, when the lease ends.
-- AUTOINCREMENT: the number of a lane that is gone must not come back, or an old lease would hold for another lane.
CREATE TABLE lanes (
  id       INTEGER PRIMARY KEY AUTOINCREMENT,
  key      TEXT    NOT NULL UNIQUE,
  address  TEXT,
  verified INTEGER NOT NULL DEFAULT 0,
  waiting  INTEGER NOT NULL DEFAULT 0,
  ready_at REAL,
  leased   INTEGER NOT NULL DEFAULT 0,
  epoch    INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  identify_digest BLOB,
  identify_at     REAL
);
CREATE INDEX lanes_ready ON lanes (ready_at) WHERE ready_at IS NOT NULL;

-- What is still to be sent. Within a lane, seq is the order. increments: sending it twice could count it twice.
CREATE TABLE pushes (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  lane       INTEGER NOT NULL REFERENCES lanes (id),
  id         TEXT    NOT NULL,
  address    TEXT    NOT NULL,
  trust      INTEGER NOT NULL,
  kind       TEXT    NOT NULL,
  body       BLOB    NOT NULL,
  since      REAL    NOT NULL,
  attempts   INTEGER NOT NULL DEFAULT 0,
  increments INTEGER NOT NULL DEFAULT 0,
  started    INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX pushes_lane ON pushes (lane, seq);

-- Tracks of visitors who are not identified yet.
CREATE TABLE held (
  seq     INTEGER PRIMARY KEY AUTOINCREMENT,
  visitor TEXT    NOT NULL,
  id      TEXT    NOT NULL,
  body    BLOB    NOT NULL,
  since   REAL    NOT NULL
);
CREATE INDEX held_visitor ON held (visitor, seq);
CREATE INDEX held_since ON held (since);
CREATE INDEX held_id ON held (id);

CREATE TABLE dead (
  seq      INTEGER PRIMARY KEY,
  lane     INTEGER NOT NULL,
  id       TEXT    NOT NULL,
  address  TEXT    NOT NULL,
  trust    INTEGER NOT NULL,
  kind     TEXT    NOT NULL,
  body     BLOB    NOT NULL,
  since    REAL    NOT NULL,
  attempts INTEGER NOT NULL,
  reason   TEXT    NOT NULL,
  detail   TEXT    NOT NULL,
  at       REAL    NOT NULL
);
CREATE INDEX dead_at ON dead (at);
CREATE INDEX dead_lane ON dead (lane);

-- Ids that were accepted or held. after: who the browser was after an identify, reset or consent.
CREATE TABLE seen (
  id    TEXT PRIMARY KEY,
  at    REAL NOT NULL,
  shown TEXT NOT NULL,
  after BLOB
) WITHOUT ROWID;
CREATE INDEX seen_at ON seen (at);

-- Only visitors about whom there is something to know: identified, retired, or born of a log-out.
CREATE TABLE visitors (
  id         TEXT PRIMARY KEY,
  at         REAL NOT NULL,
  retired    INTEGER NOT NULL DEFAULT 0,
  identified INTEGER NOT NULL DEFAULT 0,
  left       TEXT
) WITHOUT ROWID;
CREATE INDEX visitors_at ON visitors (at);

-- Old addresses of lanes, since a confirmed change of address.
CREATE TABLE aliases (
  key  TEXT PRIMARY KEY,
  lane INTEGER NOT NULL,
  at   REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX aliases_lane ON aliases (lane);

-- People who were erased: a keyed hash of the lane key, and when.
CREATE TABLE tombstones (hash BLOB PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;

CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE not_offered (
  setting TEXT NOT NULL,
  name    TEXT NOT NULL,
  count   INTEGER NOT NULL,
  last    REAL NOT NULL,
  PRIMARY KEY (setting, name)
) WITHOUT ROWID;

CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
