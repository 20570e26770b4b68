//! Deliberate mistakes, to show that the tests can fail. Not in a build for use.

/// A mistake that a barrier under test makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
#[cfg_attr(not(any(test, loom)), allow(dead_code, unreachable_pub, reason = "tests make and name it"))]
pub enum Fault {
    /// A grace period waits for nothing.
    NoWait,
    /// A grace period looks only at the index that was active when it began. Always flips, as [`Fault::AlwaysFlip`].
    ActiveIndexOnly,
    /// A grace period never flips the index.
    NeverFlip,
    /// A grace period does no fence before it looks at the counts.
    NoHeavyFence,
    /// Entering a section does no fence.
    NoLightFence,
    /// Not a mistake: flips the index also when nothing is pending, so that short models reach the flip.
    AlwaysFlip,
}
