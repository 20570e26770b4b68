//! Files that have lost a name to something that was moved there.
//!
//! Of a rename the kernel tells what was moved, and not what was at the new name. If that was a file, it tells right after that
//! the file's number of links has changed, without a name; it tells the same of links and unlinks, from everywhere on the filesystem.
//! The two are brought together by the process, since events that were merged may be far from where they belong, and a cut may lie
//! between the two.

use highwater_tracker::FileHandle;

use super::HashSet;

/// Files that are remembered. Those that are gone by then make room for others.
const FILES_MAX: usize = 1 << 13;

/// What one digest says of that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relinked {
    /// Processes that have moved something in the tracked directory.
    movers: HashSet<u32>,
    /// Files whose number of links has changed, each with a process that has done it.
    files: HashSet<(u32, FileHandle)>,
    /// There were too many files.
    more: bool,
}

impl Relinked {
    pub(crate) fn moved(&mut self, pid: u32) {
        self.movers.insert(pid);
    }

    pub(crate) fn push(&mut self, pid: u32, file: FileHandle) {
        self.files.insert((pid, file));
    }

    /// It does not exist any more.
    pub(crate) fn remove(&mut self, pid: u32, file: &FileHandle) {
        self.files.remove(&(pid, file.clone()));
    }

    pub(crate) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Keeps the files few.
    pub(crate) fn shorten<E>(&mut self, exists: impl Fn(&FileHandle) -> Result<bool, E>) -> Result<(), E> {
        if self.files.len() < FILES_MAX {
            return Ok(());
        }
        let mut kept = HashSet::default();
        for (pid, file) in std::mem::take(&mut self.files) {
            if exists(&file)? {
                kept.insert((pid, file));
            }
        }
        if kept.len() > FILES_MAX / 2 {
            self.more = true;
        } else {
            self.files = kept;
        }
        Ok(())
    }

    /// Forgets files of which is known by name what has happened to them.
    pub(crate) fn forget(&mut self, is_known: impl Fn(&FileHandle) -> bool) {
        self.files.retain(|(_, file)| !is_known(file));
    }

    /// Files that may have been replaced by what this digest tells, together with the one before. `None`: there were too many.
    pub(crate) fn replaced(&self, before: &Self) -> Option<HashSet<FileHandle>> {
        let moved = |pid: &u32| self.movers.contains(pid);
        if self.more && !(self.movers.is_empty() && before.movers.is_empty())
            || before.more && !self.movers.is_empty()
        {
            return None;
        }
        let now = self.files.iter().filter(|(pid, _)| moved(pid) || before.movers.contains(pid));
        let earlier = before.files.iter().filter(|(pid, _)| moved(pid));
        Some(now.chain(earlier).map(|(_, file)| file.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: usize) -> FileHandle {
        FileHandle::new(1, &number.to_ne_bytes()).unwrap()
    }

    fn relinked(movers: &[u32], files: &[(u32, usize)]) -> Relinked {
        let mut relinked = Relinked::default();
        movers.iter().for_each(|pid| relinked.moved(*pid));
        files.iter().for_each(|(pid, number)| relinked.push(*pid, file(*number)));
        relinked
    }

    #[test]
    fn a_process_that_moves_and_relinks_may_have_replaced() {
        let nothing = Relinked::default();
        let found = |now: &Relinked, before: &Relinked| now.replaced(before).unwrap().len();
        assert_eq!(found(&relinked(&[1], &[(1, 7), (2, 8)]), &nothing), 1);
        assert_eq!(found(&relinked(&[], &[(1, 7)]), &relinked(&[1], &[])), 1, "the cut was between the two");
        assert_eq!(found(&relinked(&[1], &[]), &relinked(&[], &[(1, 7)])), 1, "merged into an earlier one");
        assert_eq!(found(&nothing, &relinked(&[1], &[(1, 7)])), 0, "it has been told");
        let mut known = relinked(&[1], &[(1, 7), (1, 8)]);
        known.forget(|known| *known == file(7));
        assert_eq!(known.replaced(&nothing), Some(HashSet::from_iter([file(8)])));
    }

    #[test]
    fn of_many_files_those_that_are_gone_are_forgotten() {
        let many = |exists: bool| {
            let files: Vec<_> = (0..FILES_MAX).map(|number| (1, number)).collect();
            let mut many = relinked(&[1], &files);
            many.shorten(|_| Ok::<_, ()>(exists)).unwrap();
            many
        };
        assert_eq!(many(false).replaced(&Relinked::default()), Some(HashSet::default()));
        assert_eq!(many(true).replaced(&Relinked::default()), None);
        assert_eq!(relinked(&[1], &[]).replaced(&many(true)), None);
        assert_eq!(relinked(&[], &[(1, 7)]).replaced(&many(true)).unwrap().len(), 1);
    }
}
