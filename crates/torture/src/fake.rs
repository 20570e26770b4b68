//! A tracker without a tracker: full differences of the tree, to test the oracle itself.
//!
//! Perfect while nobody writes, so the self-test asks it only in pauses. With `drop_one_in` it forgets lines, and then the
//! oracle has to notice.

use std::collections::BTreeMap;
use std::io;

use fastrand::Rng;

use crate::line::{Answer, Line, LineKind};
use crate::object::{Captured, Kind, Tree};

/// Gives the answers that a perfect, or a forgetful, tracker would give.
pub(crate) struct Fake {
    before: Option<BTreeMap<Vec<u8>, Captured>>,
    number: u64,
    drop_one_in: Option<u32>,
    rng: Rng,
    pub(crate) dropped: u64,
}

impl Fake {
    pub(crate) fn new(drop_one_in: Option<u32>, seed: u64) -> Self {
        Self { before: None, number: 0, drop_one_in, rng: Rng::with_seed(seed), dropped: 0 }
    }

    /// What changed since the last call.
    pub(crate) fn changes(&mut self, tree: &Tree) -> io::Result<Answer> {
        let now = tree.everything()?;
        let since = format!("fake:{}", self.number);
        self.number += 1;
        let fresh = self.before.is_none();
        let mut lines = difference(&self.before.take().unwrap_or_else(|| now.clone()), &now);
        if let Some(one_in) = self.drop_one_in {
            let all = lines.len();
            lines.retain(|_| self.rng.u32(0..one_in) > 0);
            self.dropped += (all - lines.len()) as u64;
        }
        self.before = Some(now);
        Ok(Answer { cursor: format!("fake:{}", self.number), since: Some(since), fresh, lines })
    }
}

fn difference(before: &BTreeMap<Vec<u8>, Captured>, now: &BTreeMap<Vec<u8>, Captured>) -> Vec<Line> {
    let mut lines = Vec::new();
    let line = |path: &Vec<u8>, kind, object| Line {
        path: path.clone(),
        kind,
        object,
        from: None,
        recursive: false,
        recovered: false,
    };
    for (path, old) in before {
        let same = now.get(path).is_some_and(|new| new.ino == old.ino && new.object.kind == old.object.kind);
        if !same {
            lines.push(line(path, LineKind::Deleted, old.object.kind));
        }
    }
    // Children before parents.
    lines.reverse();
    for (path, new) in now {
        let old = before.get(path).filter(|old| old.ino == new.ino && old.object.kind == new.object.kind);
        // In the order of paths a parent comes before its children.
        match old {
            None => lines.push(line(path, LineKind::Created, new.object.kind)),
            Some(old) if old.ctime_ns != new.ctime_ns || old.object != new.object => {
                let kind = if new.object.kind == Kind::File && old.object.content != new.object.content {
                    LineKind::Modified
                } else {
                    LineKind::Metadata
                };
                lines.push(line(path, kind, new.object.kind));
            }
            Some(_) => {}
        }
    }
    lines
}
