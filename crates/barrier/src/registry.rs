//! The slots of one barrier.
//!
//! Invariant: slots are only ever added, and live as long as the barrier. A thread that ends gives its slot back, so
//! there are at most as many as there were threads inside or able to enter at one time (and one more for each thread
//! that ended with a forgotten section).

use std::sync::Arc;

use crate::primitive::{Mutex, MutexGuard, Ordering, fence, lock};
use crate::slot::Slot;

#[derive(Debug)]
pub(crate) struct Registry {
    slots: Mutex<Vec<Arc<Slot>>>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::new(Vec::new()) }
    }

    /// Takes a slot for the calling thread.
    pub(crate) fn take(&self) -> Arc<Slot> {
        Self::take_from(&mut self.slots())
    }

    /// Lends a slot for one call of `enter`. The slot is free again when the section that `enter` counted has left.
    pub(crate) fn lend<R>(&self, enter: impl FnOnce(&Arc<Slot>) -> R) -> R {
        // The lock is held throughout: until the section is counted the slot looks free.
        let mut slots = self.slots();
        let slot = Self::take_from(&mut slots);
        let entered = enter(&slot);
        slot.release();
        entered
    }

    fn take_from(slots: &mut Vec<Arc<Slot>>) -> Arc<Slot> {
        let slot = match slots.iter().find(|slot| slot.take()) {
            Some(slot) => Arc::clone(slot),
            None => {
                let slot = Arc::new(Slot::new_held());
                slots.push(Arc::clone(&slot));
                slot
            }
        };
        // A barrier whose fence came before this did not see the slot and does not wait for it.
        // ORDERING: pairs with fence(SeqCst) in `FenceKind::heavy` (ordered after it by the lock): sections of the
        // new holder see everything from before that barrier.
        fence(Ordering::SeqCst);
        slot
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        lock(&self.slots)
    }

    /// The loom model of membarrier(2): returns after every thread has executed a full fence somewhere between two
    /// of its steps. Threads that do not hold a slot have nothing to order.
    #[cfg(loom)]
    pub(crate) fn interrupt_every_thread(&self) {
        let slots: Vec<_> = self.slots().clone();
        for slot in &slots {
            slot.interrupt();
        }
        for slot in &slots {
            while !slot.interrupted() {
                loom::thread::yield_now();
            }
        }
    }
}
