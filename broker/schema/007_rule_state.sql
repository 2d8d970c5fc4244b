-- What the aggregation rule remembers from one version to the next (broker/aggregate/rule.py), as a momentum: of the
-- newest version only. Empty or absent where the rule remembers nothing, or began with this version.
ALTER TABLE versions ADD COLUMN rule_state BYTEA;
