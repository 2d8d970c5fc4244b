-- The last account of bytes that each device gave of itself (Traffic of wire/messages.py), since it was enrolled. A row
-- that is lost comes back with the next telemetry.
CREATE TABLE traffic (
    device_id TEXT PRIMARY KEY,
    update_up BIGINT NOT NULL,
    retry_up BIGINT NOT NULL,
    model_up BIGINT NOT NULL,
    model_down BIGINT NOT NULL,
    telemetry_up BIGINT NOT NULL,
    control_up BIGINT NOT NULL,
    control_down BIGINT NOT NULL,
    transport_up BIGINT NOT NULL,
    transport_down BIGINT NOT NULL,
    told_unix_s DOUBLE PRECISION NOT NULL
);
