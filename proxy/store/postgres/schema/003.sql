-- The timelines of the write-ahead log that this database was seen on: each promotion of a standby begins one. lost: acknowledged pushes that
-- were looked for then and not found; at: when that was, or when the timeline was first seen.
CREATE TABLE timelines (timeline integer PRIMARY KEY, at double precision NOT NULL, lost bigint NOT NULL DEFAULT 0);
