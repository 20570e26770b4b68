//! A reference consumer, for the demo and for tests.
