-- The life of a version (broker/rollout.py): candidate, promoted, or put out; why; and what the operator wants of it.
-- Versions from before were shared as they were made.
ALTER TABLE versions ADD COLUMN stage TEXT NOT NULL DEFAULT 'promoted';
ALTER TABLE versions ADD COLUMN stage_why TEXT NOT NULL DEFAULT '';
ALTER TABLE versions ADD COLUMN wish TEXT NOT NULL DEFAULT '';
-- When a candidate is put out (Ring of broker/effects.py), as JSON; empty where the round has no ring.
ALTER TABLE rounds ADD COLUMN ring TEXT NOT NULL DEFAULT '';
-- What devices said of candidates.
CREATE TABLE trials (
    device_id TEXT NOT NULL,
    round_id BIGINT NOT NULL,
    model_version BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    held_out_correct BIGINT NOT NULL,
    held_out_count BIGINT NOT NULL,
    compared_with BIGINT NOT NULL,
    won BIGINT NOT NULL,
    lost BIGINT NOT NULL,
    refused TEXT NOT NULL,
    received_unix_s DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device_id, round_id)
);
CREATE INDEX trials_round ON trials (round_id);
