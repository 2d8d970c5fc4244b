-- How a round is offered, and to whom (RoundRow of broker/effects.py). The nonce is empty but in a buffered round that
-- has been opened; the choice is JSON. Rounds from before are synchronous.
ALTER TABLE rounds ADD COLUMN mode TEXT NOT NULL DEFAULT 'synchronous';
ALTER TABLE rounds ADD COLUMN updates_enough BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rounds ADD COLUMN nonce BYTEA;
ALTER TABLE rounds ADD COLUMN draw BIGINT NOT NULL DEFAULT 4294967296;
ALTER TABLE rounds ADD COLUMN choice TEXT NOT NULL DEFAULT '{}';
-- What the operator calls devices by, and how often each was offered a round.
CREATE TABLE tags (
    device_id TEXT NOT NULL,
    tag TEXT NOT NULL,
    PRIMARY KEY (device_id, tag)
);
CREATE TABLE invitations (
    device_id TEXT PRIMARY KEY,
    offered BIGINT NOT NULL,
    last_round_id BIGINT NOT NULL
);
