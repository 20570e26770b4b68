//! The steps of the protocol that matter, each taken away or misplaced once.
//!
//! A model that finds nothing proves little as long as it is not known what it would find. Each of these must lead to a
//! counter-example (`tests/model.rs`); `--trace NAME` tells it as a story.

/// How the protocol is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// The coverage is looked up, and the intent made, before the section is entered.
    CoverageBeforeEnter,
    /// What covers the object (the directory that it is in) is looked up before the section is entered.
    TargetBeforeEnter,
    /// The operation goes on before its intent is durable.
    IntentNotAwaited,
    /// A record goes into the period that was current when its section was entered.
    RecordInPeriodOfEntry,
    /// The first design: the record is made before the operation, and a batch is everything with a smaller USN than its seal. It has no
    /// tails.
    RecordBeforeOperation,
    /// What a period tells already is not forgotten when the period ends.
    SuppressionOutlivesPeriod,
    /// A checkpoint does not wait for operations in flight.
    NoBarrierInCheckpoint,
    /// A caller shares a checkpoint that began before it asked.
    ShareCheckpointBegunBefore,
    /// A barrier keeps new operations out while it waits (a reader-writer lock).
    BarrierBlocksOperations,
    /// A checkpoint does not wait for operations between their record and their answer.
    NoTails,
    /// A checkpoint does not let the kernel finish with the answers.
    NoSettle,
    /// A batch is handed out before it is durable.
    NoSyncOfBatch,
    /// An open writer is sampled after the wait for its writes.
    SampleAfterWait,
    /// The writes in flight of an open writer are not waited for.
    NoWaitForWrites,
    /// A writer is not compared when it closes.
    CloseNotCompared,
    /// As first built: a writer is compared when it closes even if others have the file open, without a wait for their writes.
    CompareAtEveryClose,
    /// The horizon moves without `syncfs`.
    NoSyncfs,
    /// The horizon does not wait for operations under an intent of the old window.
    NoBarrierInHorizon,
    /// The window begins after that wait.
    WindowAfterBarrier,
    /// Open writers get no intent in the new window.
    NoWriterIntents,
    /// As first built: the horizon's checkpoint comes before its window.
    CheckpointBeforeWindow,
    /// As first built: open writers get their intents after the horizon's checkpoint.
    WriterIntentsAfterCheckpoint,
    /// A directory that is moved has no intent of its own.
    NoMoveIntent,
    /// As first built: a directory that is removed or replaced has no intent of its own.
    NoVictimIntent,
    /// As first built: a rename over whose time a window began does not renew its intents.
    IntentsNotRenewed,
    /// As first built: a directory inherits from what covers its parent when it is recorded, also in a later window.
    InheritAcrossWindows,
    /// Recovery does not look for directories that were born in the window.
    BornNotTold,
    /// Recovery tells in a period that consumers have acked.
    RecoveredInAckedPeriod,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::CoverageBeforeEnter,
        Self::TargetBeforeEnter,
        Self::IntentNotAwaited,
        Self::RecordInPeriodOfEntry,
        Self::RecordBeforeOperation,
        Self::SuppressionOutlivesPeriod,
        Self::NoBarrierInCheckpoint,
        Self::ShareCheckpointBegunBefore,
        Self::BarrierBlocksOperations,
        Self::NoTails,
        Self::NoSettle,
        Self::NoSyncOfBatch,
        Self::SampleAfterWait,
        Self::NoWaitForWrites,
        Self::CloseNotCompared,
        Self::CompareAtEveryClose,
        Self::NoSyncfs,
        Self::NoBarrierInHorizon,
        Self::WindowAfterBarrier,
        Self::NoWriterIntents,
        Self::CheckpointBeforeWindow,
        Self::WriterIntentsAfterCheckpoint,
        Self::NoMoveIntent,
        Self::NoVictimIntent,
        Self::IntentsNotRenewed,
        Self::InheritAcrossWindows,
        Self::BornNotTold,
        Self::RecoveredInAckedPeriod,
    ];

    /// The name of the scenario that shows it with few states.
    pub fn shown_by(self) -> &'static str {
        match self {
            Self::CoverageBeforeEnter
            | Self::IntentNotAwaited
            | Self::NoSyncfs
            | Self::CheckpointBeforeWindow
            | Self::NoMoveIntent
            | Self::NoVictimIntent
            | Self::BornNotTold
            | Self::RecoveredInAckedPeriod => "directories in each other's place",
            Self::TargetBeforeEnter
            | Self::NoBarrierInHorizon
            | Self::WindowAfterBarrier
            | Self::NoWriterIntents
            | Self::IntentsNotRenewed => "a file that moves while it is opened",
            Self::RecordInPeriodOfEntry
            | Self::RecordBeforeOperation
            | Self::SuppressionOutlivesPeriod
            | Self::SampleAfterWait
            | Self::NoWaitForWrites
            | Self::CloseNotCompared
            | Self::CompareAtEveryClose => "open writers",
            Self::NoBarrierInCheckpoint
            | Self::ShareCheckpointBegunBefore
            | Self::BarrierBlocksOperations
            | Self::NoTails
            | Self::NoSettle => "checkpoint",
            Self::NoSyncOfBatch => "horizon",
            Self::WriterIntentsAfterCheckpoint => "horizon and open writers",
            Self::InheritAcrossWindows => "a window that begins late",
        }
    }
}

impl std::fmt::Display for Mutation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}
