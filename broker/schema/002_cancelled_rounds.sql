-- The operator's wish that a round end without a new version. It stays in the row: `serve` carries it out whenever it
-- runs, and a wish that comes too late changes nothing.
ALTER TABLE rounds ADD COLUMN unwanted BIGINT NOT NULL DEFAULT 0;
