-- Tokens (wire/token_text.py) that devices may claim their place with. Only the public half of a token's key is here;
-- nothing in this table claims anything. device_id is empty where any device may; claimed is the serial number of what
-- the claim got, empty before.
CREATE TABLE tokens (
    token_id TEXT PRIMARY KEY,
    public_key TEXT NOT NULL,
    device_id TEXT NOT NULL,
    expires_unix_s DOUBLE PRECISION NOT NULL,
    claimed TEXT NOT NULL DEFAULT ''
);
-- Certificates that the fleet's authority issued (broker/authority.py): serial number in hex, whose, DER. A token's
-- is called "token ID". revoked_unix_s is 0 while it holds.
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    content BYTEA NOT NULL,
    issued_unix_s DOUBLE PRECISION NOT NULL,
    expires_unix_s DOUBLE PRECISION NOT NULL,
    revoked_unix_s DOUBLE PRECISION NOT NULL DEFAULT 0
);
CREATE INDEX certificates_name ON certificates (name)
