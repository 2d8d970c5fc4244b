-- What the coordinator keeps of a version beside its published numbers (engine/master.py). No device ever has it, so it
-- must be backed up with the rest; empty for a float model.
ALTER TABLE versions ADD COLUMN remainder BYTEA;
