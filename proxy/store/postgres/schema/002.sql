-- See sqlite/schema/003.sql for what the columns mean. Lanes first: every transaction locks them before visitors.
ALTER TABLE lanes ADD COLUMN bytes bigint NOT NULL DEFAULT 0;
UPDATE lanes l SET bytes = p.bytes FROM (SELECT lane, sum(length(body)) AS bytes FROM pushes GROUP BY lane) p WHERE p.lane = l.id;

ALTER TABLE visitors ADD COLUMN person text COLLATE "C", ADD COLUMN shown double precision,
  ADD COLUMN shown_by text COLLATE "C";
UPDATE visitors SET person = left_key WHERE left_key IS NOT NULL;
CREATE INDEX visitors_person ON visitors (person) WHERE person IS NOT NULL;
CREATE INDEX visitors_shown ON visitors (at) WHERE NOT retired AND NOT identified AND person IS NULL;

-- left_key is what nodes of the version before know of `person`: of whose log-out the visitor was born, NULL once it is identified. They go on
-- while the others are updated, so each column follows the other. A later step drops it.
CREATE FUNCTION scq_visitor_person() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    NEW.person := coalesce(NEW.person, NEW.left_key);
  ELSIF NEW.left_key IS DISTINCT FROM OLD.left_key THEN
    NEW.person := NEW.left_key;
  END IF;
  NEW.left_key := CASE WHEN NOT NEW.identified THEN NEW.person END;
  RETURN NEW;
END $$;
CREATE TRIGGER visitors_left_key BEFORE INSERT OR UPDATE ON visitors FOR EACH ROW EXECUTE FUNCTION scq_visitor_person();
