//! The guards of a write section.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::primitive::AtomicUsize;
use crate::slot::{Slot, leave_own};

/// A write section of the thread that entered it; ends when it is dropped, also by a panic.
///
/// Sections may be nested and may end in any order. A section that is forgotten ([`std::mem::forget`]) never ends:
/// every later barrier waits for ever, and every deadline passes.
#[must_use = "a section ends when its guard is dropped"]
pub struct Section<'a> {
    count: &'a AtomicUsize,
    /// The count is written without atomic read-modify-write, so the guard must stay on its thread.
    not_send: PhantomData<*const ()>,
}

impl<'a> Section<'a> {
    #[inline(always)]
    pub(crate) fn new(count: &'a AtomicUsize) -> Self {
        Self { count, not_send: PhantomData }
    }
}

impl Drop for Section<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        leave_own(self.count);
    }
}

impl fmt::Debug for Section<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section").finish_non_exhaustive()
    }
}

/// A write section that any thread may end; ends when it is dropped.
///
/// For operations whose end is seen on another thread than their begin. It keeps a small part of its barrier alive,
/// not the barrier. What is said about forgetting a [`Section`] holds here too.
#[must_use = "a section ends when its guard is dropped"]
pub struct OwnedSection {
    slot: Arc<Slot>,
    index: usize,
}

impl OwnedSection {
    #[inline]
    pub(crate) fn new(slot: Arc<Slot>, index: usize) -> Self {
        Self { slot, index }
    }
}

impl Drop for OwnedSection {
    #[inline]
    fn drop(&mut self) {
        self.slot.leave_shared(self.index);
    }
}

impl fmt::Debug for OwnedSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedSection").finish_non_exhaustive()
    }
}
