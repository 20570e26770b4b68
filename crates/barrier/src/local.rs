//! Which slot this thread holds in which barrier.
//!
//! Invariant: an entry `(id, slot)` exists only while this thread holds `slot` in the barrier `id`. Ids are never
//! reused, so an entry of a barrier that was dropped matches nothing.

use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::Arc;

use crate::primitive::thread_local;
use crate::registry::Registry;
use crate::slot::Slot;

#[cfg(not(loom))]
thread_local! {
    /// The entry used last. It has no destructor, so it costs one access relative to the thread pointer.
    static LAST: Cell<(u64, *const Slot)> = const { Cell::new((0, ptr::null())) };
    /// All entries.
    static HELD: RefCell<Held> = const { RefCell::new(Held(Vec::new())) };
}
// The model's macro does not know `const`.
#[cfg(loom)]
thread_local! {
    static LAST: Cell<(u64, *const Slot)> = Cell::new((0, ptr::null()));
    static HELD: RefCell<Held> = RefCell::new(Held(Vec::new()));
}

struct Held(Vec<(u64, Arc<Slot>)>);

impl Drop for Held {
    fn drop(&mut self) {
        // A model that has failed destroys its threads' locals from outside, where nothing of loom may be touched.
        if cfg!(loom) && std::thread::panicking() {
            return;
        }
        // First forget, then give back: a section may be entered by a destructor that runs after this one.
        let _ = LAST.try_with(|last| last.set((0, ptr::null())));
        for (_, slot) in &self.0 {
            slot.release();
        }
    }
}

/// The slot that this thread holds in barrier `id`, if that was the barrier it used last.
///
/// The pointer is valid for as long as the barrier `id` lives.
#[inline(always)]
pub(crate) fn last(id: u64) -> Option<*const Slot> {
    let (last, slot) = LAST.try_with(Cell::get).ok()?;
    (last == id).then_some(slot)
}

/// The slot that this thread holds in barrier `id`; takes one if there is none.
///
/// The pointer is valid for as long as the registry lives. `None`: the thread is ending and has given its slots back.
pub(crate) fn hold(id: u64, registry: &Registry) -> Option<*const Slot> {
    HELD.try_with(|held| {
        let held = &mut held.borrow_mut().0;
        let slot = match held.iter().find(|(of, _)| *of == id) {
            Some((_, slot)) => Arc::as_ptr(slot),
            None => {
                // A slot that nobody else refers to is one of a dropped barrier.
                held.retain(|(_, slot)| Arc::strong_count(slot) > 1);
                let taken = registry.take();
                let slot = Arc::as_ptr(&taken);
                held.push((id, taken));
                slot
            }
        };
        let _ = LAST.try_with(|last| last.set((id, slot)));
        slot
    })
    .ok()
}

/// Whether this thread has an open [`Section`](crate::Section) of barrier `id`.
pub(crate) fn inside(id: u64) -> bool {
    HELD.try_with(|held| held.borrow().0.iter().any(|(of, slot)| *of == id && slot.inside())).unwrap_or(false)
}

/// The number of barriers that this thread has an entry for.
#[cfg(all(test, not(loom)))]
pub(crate) fn entries() -> usize {
    HELD.with(|held| held.borrow().0.len())
}
