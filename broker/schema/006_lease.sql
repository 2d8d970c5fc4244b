-- Which coordinator may write, where no lock of one machine can say it: on PostgreSQL. Every new holder has a larger
-- term, so one that slept past its end finds another term and writes nothing more. Times are of the database's clock.
CREATE TABLE lease (
    only_row BIGINT PRIMARY KEY CHECK (only_row = 1),
    term BIGINT NOT NULL,
    holder TEXT NOT NULL,
    ends_unix_s DOUBLE PRECISION NOT NULL
);

-- How many transactions have written, for a coordinator that looks whether somebody else has. SQLite knows by itself.
INSERT INTO settings (name, value) VALUES ('changes', 0);
