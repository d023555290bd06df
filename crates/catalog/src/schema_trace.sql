-- What files with the same content mostly share (see elsewhere.rs), of files worth looking for
-- in another place of their store; null of all others, and of what was held before this step.
ALTER TABLE entry ADD COLUMN trace INTEGER;
ALTER TABLE past ADD COLUMN trace INTEGER;

CREATE INDEX entry_trace ON entry (trace) WHERE trace IS NOT NULL;
CREATE INDEX past_trace ON past (trace) WHERE trace IS NOT NULL;
