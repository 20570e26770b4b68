//! A durable, checksummed, append-only journal with group commit.
