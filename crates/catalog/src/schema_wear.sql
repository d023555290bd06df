-- Bytes of content that differed and had to get there, beside those written.
ALTER TABLE replica ADD COLUMN bytes_changed INTEGER NOT NULL DEFAULT 0;
