-- What `scq-proxy copy` asks of an SQLite store beside the rows of its tables (`rows.TABLES`).

-- name: at_work
-- What a server that has not ended properly left behind: it is brought to an end by opening the store.
SELECT (SELECT count(*) FROM lanes WHERE leased) + (SELECT count(*) FROM erasures) + (SELECT count(*) FROM gate WHERE probe_until IS NOT NULL);

-- name: numbers
-- The highest that were ever given out.
SELECT name, seq FROM sqlite_sequence WHERE name IN ('lanes', 'pushes', 'held', 'sign_ups');
