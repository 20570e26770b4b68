//! A write barrier: waits for every section in flight and blocks no new one.
