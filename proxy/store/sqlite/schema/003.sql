-- person: lane key of who identified as the visitor; until somebody has, of the only one who may (see proxy.core.visitors). shown: when a request
-- first carried a cookie with it, that of the visitor shown_by. There are visitors of whom nothing else is known: they are forgotten sooner.
ALTER TABLE visitors RENAME COLUMN left TO person;
ALTER TABLE visitors ADD COLUMN shown REAL;
ALTER TABLE visitors ADD COLUMN shown_by TEXT;
DROP INDEX visitors_left;
CREATE INDEX visitors_person ON visitors (person) WHERE person IS NOT NULL;
CREATE INDEX visitors_shown ON visitors (at) WHERE retired = 0 AND identified = 0 AND person IS NULL;

-- How much waits: the bytes of the bodies in `pushes`, kept with every transition that changes `waiting`.
ALTER TABLE lanes ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE lanes SET bytes = (SELECT coalesce(sum(length(body)), 0) FROM pushes WHERE lane = lanes.id) WHERE waiting > 0;
