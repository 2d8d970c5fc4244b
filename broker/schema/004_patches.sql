-- What makes a version's parameters of its parent's (engine/codec/patch.py), so that a device that has an older one need
-- not fetch them whole. Empty where nothing does: version 1, and the first version of a scale epoch.
ALTER TABLE versions ADD COLUMN patch BYTEA;
