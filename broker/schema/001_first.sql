-- Everything the coordinator must not forget. Types are read alike by SQLite and PostgreSQL; times are Unix seconds.

CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);

CREATE TABLE devices (
    device_id TEXT PRIMARY KEY,
    public_key TEXT NOT NULL,
    added_unix_s DOUBLE PRECISION NOT NULL
);

-- What devices said of themselves. Lost rows come back with the next birth.
CREATE TABLE sightings (
    device_id TEXT PRIMARY KEY,
    present BIGINT NOT NULL,
    software TEXT NOT NULL,
    num_examples BIGINT NOT NULL,
    model_version BIGINT NOT NULL,
    work TEXT NOT NULL,
    reason TEXT NOT NULL,
    seen_unix_s DOUBLE PRECISION NOT NULL
);

CREATE TABLE rounds (
    round_id BIGINT PRIMARY KEY,
    status TEXT NOT NULL CHECK (status IN ('waiting', 'open', 'closed')),
    plan BYTEA NOT NULL,
    updates_min BIGINT NOT NULL,
    cohort_max BIGINT NOT NULL,
    lasts_ms BIGINT NOT NULL,
    base_version BIGINT NOT NULL,
    model_version BIGINT NOT NULL
);

-- At most one round is open: a second one would be a mistake of ours, and must not reach the disk.
CREATE UNIQUE INDEX rounds_open ON rounds (status) WHERE status = 'open';

CREATE TABLE blobs (
    digest BYTEA PRIMARY KEY,
    content BYTEA NOT NULL
);

CREATE TABLE versions (
    model_version BIGINT PRIMARY KEY,
    parent_version BIGINT NOT NULL,
    round_id BIGINT NOT NULL,
    manifest BYTEA NOT NULL,
    params_digest BYTEA NOT NULL,
    accuracy DOUBLE PRECISION,
    loss DOUBLE PRECISION,
    members BIGINT NOT NULL,
    created_unix_s DOUBLE PRECISION NOT NULL,
    bytes_up BIGINT NOT NULL,
    bytes_down BIGINT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL
);

CREATE TABLE updates (
    device_id TEXT NOT NULL,
    round_id BIGINT NOT NULL,
    base_version BIGINT NOT NULL,
    weight BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    held_out_correct BIGINT NOT NULL,
    held_out_count BIGINT NOT NULL,
    payload_bytes BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    counted_in BIGINT,
    received_unix_s DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device_id, round_id)
);

CREATE INDEX updates_counted_in ON updates (counted_in);
