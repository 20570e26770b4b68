//! The verdict: the replica against the tree, path by path.

use std::collections::{BTreeMap, HashMap};

use crate::object::{Captured, Kind, show};
use crate::replica::{Held, Replica};

/// One difference.
pub(crate) struct Difference {
    pub(crate) path: Vec<u8>,
    pub(crate) text: String,
    /// Only the data differ, not even the size and the times.
    pub(crate) only_data: bool,
}

/// Where the replica is not what the tree is. Nobody may be writing.
pub(crate) fn compare(tree: &BTreeMap<Vec<u8>, Captured>, replica: &Replica) -> Vec<Difference> {
    let held = replica.everything();
    let mut found = Vec::new();
    for (path, captured) in tree {
        let (text, only_data) = match held.get(path) {
            None => (format!("missing in the replica\n    tree:    {}", described(captured)), false),
            Some(held) if *held.object != captured.object => (
                format!(
                    "differs in {}\n    tree:    {}\n    replica: {:?} ino {}",
                    captured.object.difference(held.object),
                    described(captured),
                    held.object,
                    held.ino
                ),
                captured.object.differs_in_data_only(held.object),
            ),
            Some(_) => continue,
        };
        found.push(Difference { path: path.clone(), text, only_data });
    }
    for (path, held) in &held {
        if !tree.contains_key(path) {
            let text = format!("not in the tree any more\n    replica: {:?} ino {}", held.object, held.ino);
            found.push(Difference { path: path.clone(), text, only_data: false });
        }
    }
    found.extend(links(tree, &held));
    found
}

/// Names of one object in the tree must be names of one object in the replica, and the other way round. Which object that
/// is, the replica knows by the inode number that it copied from: not told of a change, it has an old one.
fn links(tree: &BTreeMap<Vec<u8>, Captured>, replica: &BTreeMap<Vec<u8>, Held<'_>>) -> Vec<Difference> {
    let mut by_ino: HashMap<u64, (&[u8], u64)> = HashMap::new();
    let mut by_copied: HashMap<u64, (&[u8], u64)> = HashMap::new();
    let mut found = Vec::new();
    for (path, captured) in tree.iter().filter(|(_, captured)| captured.object.kind != Kind::Directory) {
        let Some(&Held { ino: copied, node, .. }) = replica.get(path) else { continue };
        let ino = captured.ino;
        let numbers = format!("tree: ino {ino}, replica: node {node}, copied from ino {copied}");
        let (first, expected) = *by_ino.entry(ino).or_insert((path, copied));
        if expected != copied {
            let text = format!(
                "is a hard link of {} in the tree, not in the replica\n    {numbers}, the other from {expected}",
                show(first)
            );
            found.push(Difference { path: path.clone(), text, only_data: false });
        }
        let (first, expected) = *by_copied.entry(copied).or_insert((path, ino));
        if expected != ino {
            let text = format!(
                "is a hard link of {} in the replica, not in the tree\n    {numbers}, the other is ino {expected}",
                show(first)
            );
            found.push(Difference { path: path.clone(), text, only_data: false });
        }
    }
    found
}

/// Where two views of one tree differ: the mount and what is below it.
pub(crate) fn compare_views(
    upper: &BTreeMap<Vec<u8>, Captured>,
    lower: &BTreeMap<Vec<u8>, Captured>,
) -> Vec<Difference> {
    let mut found = Vec::new();
    for (path, above) in upper {
        let text = match lower.get(path) {
            None => "is in the mounted tree, not in the filesystem below".to_owned(),
            Some(below)
                if below.object != above.object || below.ino != above.ino || below.nlink != above.nlink =>
            {
                format!(
                    "the mount shows it otherwise than the filesystem below: {}\n    mount: {}\n    below: {}",
                    below.object.difference(&above.object),
                    described(above),
                    described(below)
                )
            }
            Some(_) => continue,
        };
        found.push(Difference { path: path.clone(), text, only_data: false });
    }
    for path in lower.keys().filter(|path| !upper.contains_key(*path)) {
        let text = "is in the filesystem below, not in the mounted tree".to_owned();
        found.push(Difference { path: path.clone(), text, only_data: false });
    }
    found
}

fn described(captured: &Captured) -> String {
    format!("{:?} ino {} nlink {} ctime {}", captured.object, captured.ino, captured.nlink, captured.ctime_ns)
}
