//! The protocol with one step left out: mistakes that the simulation must find.
//!
//! Only with the feature `mutants`, which nothing but the simulation's own tests enables. Without it [`is`] is `false` at
//! compile time and nothing of this is left in the program.

#[cfg(feature = "mutants")]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Which step is left out or put in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutants"), allow(dead_code, unreachable_pub, reason = "nothing switches one on"))]
pub enum Mutation {
    /// The section begins only after the coverage has been looked at.
    CoverageOutsideSection,
    /// A record belongs to the period in which its section was entered.
    RecordInOldPeriod,
    /// A checkpoint does not wait for the operations in flight.
    NoBarrier,
    /// A checkpoint does not wait for the callers that have not been answered yet.
    NoTails,
    /// A checkpoint does not let the source settle.
    NoSettle,
    /// A batch is handed out before its seal is durable.
    SealNotDurable,
    /// The horizon does not wait for the operations that went on under an older intent.
    NoHorizonBarrier,
    /// The horizon makes its checkpoint before it begins its window.
    CheckpointBeforeWindow,
    /// The horizon begins its window after the wait for older operations.
    WindowAfterBarrier,
    /// The horizon moves without the tracked filesystem having been synced.
    NoSyncfs,
    /// The horizon moves without an intent for each open writer.
    NoWriterIntents,
    /// Open writers are sampled after the wait for the writes in flight.
    SampleAfterWait,
    /// A mapping is not reported once more after it was seen.
    MappingNotCarried,
    /// An operation does not wait for its intent.
    IntentNotDurable,
    /// The move of a directory has no intent of its own.
    NoMoveIntent,
    /// A new directory takes over its parent's coverage whatever the clock says.
    InheritWhateverTheTime,
    /// Recovery does not look for directories that were born in the window.
    NoBirthWalk,
    /// Records of before a crash and after the horizon count as facts.
    RecordsAfterHorizon,
    /// What a rename has moved is not told again.
    NotToldAgain,
    /// A gap is not written down.
    GapNotRecorded,
}

#[cfg(feature = "mutants")]
impl Mutation {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::CoverageOutsideSection,
        Self::RecordInOldPeriod,
        Self::NoBarrier,
        Self::NoTails,
        Self::NoSettle,
        Self::SealNotDurable,
        Self::NoHorizonBarrier,
        Self::CheckpointBeforeWindow,
        Self::WindowAfterBarrier,
        Self::NoSyncfs,
        Self::NoWriterIntents,
        Self::SampleAfterWait,
        Self::MappingNotCarried,
        Self::IntentNotDurable,
        Self::NoMoveIntent,
        Self::InheritWhateverTheTime,
        Self::NoBirthWalk,
        Self::RecordsAfterHorizon,
        Self::NotToldAgain,
        Self::GapNotRecorded,
    ];
}

#[cfg(feature = "mutants")]
static MUTATION: AtomicUsize = AtomicUsize::new(0);

/// Switches a mistake on, in the whole process, or all off.
#[cfg(feature = "mutants")]
pub fn set(mutation: Option<Mutation>) {
    // ORDERING: set before the trackers that it is for exist.
    MUTATION.store(mutation.map_or(0, |mutation| mutation as usize + 1), Ordering::Relaxed);
}

/// Whether this mistake is to be made.
#[cfg(feature = "mutants")]
pub(crate) fn is(mutation: Mutation) -> bool {
    // ORDERING: see `set`.
    MUTATION.load(Ordering::Relaxed) == mutation as usize + 1
}

/// Whether this mistake is to be made: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn is(_: Mutation) -> bool {
    false
}
