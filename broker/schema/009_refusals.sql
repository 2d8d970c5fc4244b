-- What was not believed, by day (of UTC, in days since 1970) and reason: some ten words, and a year of days at most.
-- The loop adds to it once a minute.
CREATE TABLE refusals (
    day BIGINT NOT NULL,
    reason TEXT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (day, reason)
);
-- How good a version is in the field is asked of the newest ones, beside a store that grows.
CREATE INDEX updates_base_version ON updates (base_version);
