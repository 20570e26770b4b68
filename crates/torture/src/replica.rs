//! A replica of the tracked tree, kept from change lists alone.
//!
//! It is held in memory: what matters is which paths it reads, and that is exactly what the lines tell it to. It never
//! looks at a path that no line covers. Cloning it is cheap, so that a batch whose ack did not arrive can be taken back.

use std::collections::{BTreeMap, HashMap};
use std::io;

use crate::line::{Line, LineKind, is_at_or_below};
use crate::object::{Captured, Kind, Object, Tree, join, show};

type NodeId = u64;
const ROOT: NodeId = 0;

/// How the consumer deals with objects that move while it copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Policy {
    /// Applies each batch as told and remembers nothing: what it misses in a race has to be told again.
    #[default]
    Reference,
    /// Remembers its last batch, and copies again at its new place what a rename of the next batch has moved.
    Careful,
}

/// One name and what is there. Names of one object are nodes that were copied from one inode number.
#[derive(Clone)]
struct Node {
    object: Object,
    ino: u64,
    children: BTreeMap<Vec<u8>, NodeId>,
}

/// One line as it was applied, with its path as it is after later renames.
#[derive(Clone)]
struct Applied {
    path: Vec<u8>,
    kind: LineKind,
    object: Kind,
    recursive: bool,
}

/// The replica.
#[derive(Clone)]
pub(crate) struct Replica {
    nodes: HashMap<NodeId, Node>,
    next: NodeId,
    /// Non-directories by the inode number that they had when copied: how hard links are found.
    by_ino: HashMap<u64, Vec<NodeId>>,
    policy: Policy,
    last_batch: Vec<Applied>,
    /// What was read and what became of it, for the evidence. Taken by the caller.
    pub(crate) reads: Vec<String>,
}

/// What a replica says about one path.
pub(crate) struct Held<'a> {
    pub(crate) object: &'a Object,
    /// The inode number that it had when it was copied.
    pub(crate) ino: u64,
    /// Of directories none.
    pub(crate) node: u64,
}

impl Replica {
    /// Takes everything: what a consumer does after a fresh answer, and only then.
    pub(crate) fn fresh(tree: &Tree, policy: Policy) -> io::Result<Self> {
        let mut replica = Self {
            nodes: HashMap::new(),
            next: 1,
            by_ino: HashMap::new(),
            policy,
            last_batch: Vec::new(),
            reads: Vec::new(),
        };
        let root = tree.capture(b".")?.ok_or_else(|| io::Error::other("the root of the tree is gone"))?;
        replica.nodes.insert(ROOT, node(root));
        replica.take_children(tree, b".", ROOT)?;
        // All of it was copied in a race with the writers, so all of it counts as the last batch.
        replica.last_batch = vec![Applied {
            path: b".".to_vec(),
            kind: LineKind::Rescan,
            object: Kind::Directory,
            recursive: true,
        }];
        Ok(replica)
    }

    /// A replica of given objects, each with its path and the inode number that it was copied from.
    pub(crate) fn of(mut objects: Vec<(Vec<u8>, u64, Object)>) -> Self {
        let mut replica = Self {
            nodes: HashMap::new(),
            next: 1,
            by_ino: HashMap::new(),
            policy: Policy::Reference,
            last_batch: Vec::new(),
            reads: Vec::new(),
        };
        // The root first; of the others each directory stands before what is in it.
        objects.sort_by(|(one, ..), (two, ..)| (one != b".", one).cmp(&(two != b".", two)));
        for (path, ino, object) in objects {
            let is_directory = object.kind == Kind::Directory;
            let made = Node { object, ino, children: BTreeMap::new() };
            match replica.parent(&path) {
                Some((parent, name)) => {
                    let id = replica.insert(parent, &name, made);
                    if !is_directory {
                        replica.by_ino.entry(ino).or_default().push(id);
                    }
                }
                None => drop(replica.nodes.insert(ROOT, made)),
            }
        }
        replica
    }

    /// Applies the lines of one answer from top to bottom.
    pub(crate) fn apply(&mut self, tree: &Tree, lines: &[Line]) -> io::Result<()> {
        let mut before = std::mem::take(&mut self.last_batch);
        let mut now: Vec<Applied> = Vec::new();
        let mut again = Vec::new();
        for line in lines {
            if self.policy == Policy::Careful {
                if let Some(from) = &line.from {
                    again.extend(moved(&before, from, &line.path));
                    follow(&mut now, from, &line.path);
                    follow(&mut again, from, &line.path);
                    follow(&mut before, from, &line.path);
                }
                now.push(Applied {
                    path: line.path.clone(),
                    kind: line.kind,
                    object: line.object,
                    recursive: line.recursive,
                });
            }
            self.reads.push(format!("  {}", line.show()));
            self.apply_one(tree, line)?;
        }
        for applied in &again {
            self.apply_again(tree, applied)?;
        }
        now.append(&mut again);
        self.last_batch = now;
        Ok(())
    }

    fn apply_one(&mut self, tree: &Tree, line: &Line) -> io::Result<()> {
        match line.kind {
            LineKind::Created => self.copy(tree, &line.path, true),
            LineKind::Modified | LineKind::Metadata => self.copy(tree, &line.path, false),
            LineKind::Deleted => {
                if let Some((parent, name)) = self.parent(&line.path) {
                    self.remove(parent, &name);
                }
                Ok(())
            }
            LineKind::Renamed => self.rename(tree, line.from.as_deref().unwrap_or_default(), &line.path),
            LineKind::Rescan => self.rescan(tree, &line.path, line.recursive),
        }
    }

    fn apply_again(&mut self, tree: &Tree, applied: &Applied) -> io::Result<()> {
        match (applied.kind, applied.object) {
            (LineKind::Rescan, _) => self.rescan(tree, &applied.path, applied.recursive),
            (LineKind::Deleted, _) => Ok(()),
            // Taken in a race, it may have been another directory: nothing in it can be relied on.
            (LineKind::Created | LineKind::Renamed, Kind::Directory) => {
                self.rescan(tree, &applied.path, true)
            }
            _ => self.copy(tree, &applied.path, false),
        }
    }

    fn find(&self, path: &[u8]) -> Option<NodeId> {
        if path == b"." {
            return Some(ROOT);
        }
        path.split(|byte| *byte == b'/')
            .try_fold(ROOT, |at, name| self.nodes[&at].children.get(name).copied())
    }

    /// The directory that holds the last component, if it is held, and that component. `None` for the root.
    fn parent(&self, path: &[u8]) -> Option<(NodeId, Vec<u8>)> {
        if path == b"." {
            return None;
        }
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = match slash {
            Some(at) => (self.find(&path[..at])?, &path[at + 1..]),
            None => (ROOT, path),
        };
        (self.nodes[&parent].object.kind == Kind::Directory).then(|| (parent, name.to_vec()))
    }

    /// Copies one object. `created`: whatever is held there is another object.
    fn copy(&mut self, tree: &Tree, path: &[u8], created: bool) -> io::Result<()> {
        let Some(captured) = tree.capture(path)? else { return Ok(()) };
        let Some((parent, name)) = self.parent(path) else {
            if path == b"." && captured.object.kind == Kind::Directory {
                self.node(ROOT).object = captured.object;
            }
            return Ok(());
        };
        let was_held = self.nodes[&parent].children.contains_key(&name);
        let is_directory = captured.object.kind == Kind::Directory;
        let id = self.place(parent, &name, captured, created);
        if is_directory && !was_held && !created {
            // Told as changed but never taken: take it whole.
            self.take_children(tree, path, id)?;
        }
        Ok(())
    }

    fn rename(&mut self, tree: &Tree, from: &[u8], to: &[u8]) -> io::Result<()> {
        let held = self.parent(from).and_then(|(parent, name)| {
            let id = *self.nodes[&parent].children.get(&name)?;
            Some((parent, name, id))
        });
        let Some((from_parent, from_name, id)) = held else { return self.take_whole(tree, to) };
        let target = self.parent(to);
        let Some((to_parent, to_name)) = target.filter(|_| from == to || !is_at_or_below(to, from)) else {
            // Where it went is not held, as it was gone when its line was applied: it is told again. Here it is no more.
            self.remove(from_parent, &from_name);
            return Ok(());
        };
        if from == to {
            return Ok(());
        }
        self.node(from_parent).children.remove(&from_name);
        self.remove(to_parent, &to_name);
        // The target may have been the directory that held it.
        if self.nodes.contains_key(&to_parent) {
            self.node(to_parent).children.insert(to_name, id);
        } else {
            self.forget(id);
        }
        Ok(())
    }

    /// Compares a directory with the tree: takes what is not held whole, removes what is gone, reads the rest again.
    fn rescan(&mut self, tree: &Tree, path: &[u8], recursive: bool) -> io::Result<()> {
        if self.find(path).is_none_or(|id| self.nodes[&id].object.kind != Kind::Directory) {
            return self.take_whole(tree, path);
        }
        let Some(entries) = tree.list(path)? else { return self.copy(tree, path, false) };
        self.copy(tree, path, false)?;
        let Some(id) = self.find(path).filter(|id| self.nodes[id].object.kind == Kind::Directory) else {
            // Something else has come there since it was listed.
            return Ok(());
        };
        let present: HashMap<&[u8], Kind> = entries.iter().map(|(name, kind)| (&name[..], *kind)).collect();
        let gone: Vec<Vec<u8>> = self.nodes[&id]
            .children
            .keys()
            .filter(|name| !present.contains_key(&name[..]))
            .cloned()
            .collect();
        for name in gone {
            self.remove(id, &name);
        }
        for (name, _) in &entries {
            let below = join(path, name);
            let held = self.nodes[&id].children.get(name).map(|child| self.nodes[child].object.kind);
            let Some(captured) = tree.capture(&below)? else { continue };
            let is_directory = captured.object.kind == Kind::Directory;
            let known = held == Some(Kind::Directory) && is_directory;
            let child = self.place(id, name, captured, false);
            if is_directory && !known {
                self.take_children(tree, &below, child)?;
            } else if is_directory && recursive {
                self.rescan(tree, &below, true)?;
            }
        }
        Ok(())
    }

    fn take_whole(&mut self, tree: &Tree, path: &[u8]) -> io::Result<()> {
        let Some((parent, name)) = self.parent(path) else { return Ok(()) };
        let Some(captured) = tree.capture(path)? else {
            self.remove(parent, &name);
            return Ok(());
        };
        let is_directory = captured.object.kind == Kind::Directory;
        let id = self.place(parent, &name, captured, true);
        if is_directory { self.take_children(tree, path, id) } else { Ok(()) }
    }

    fn take_children(&mut self, tree: &Tree, path: &[u8], id: NodeId) -> io::Result<()> {
        for (name, _) in tree.list(path)?.unwrap_or_default() {
            let below = join(path, &name);
            let Some(captured) = tree.capture(&below)? else { continue };
            let is_directory = captured.object.kind == Kind::Directory;
            let child = self.place(id, &name, captured, true);
            if is_directory {
                self.take_children(tree, &below, child)?;
            }
        }
        Ok(())
    }

    /// Puts a captured object at a name. A directory that is held keeps its children unless `created`.
    fn place(&mut self, parent: NodeId, name: &[u8], captured: Captured, created: bool) -> NodeId {
        let (ino, nlink, size) = (captured.ino, captured.nlink, captured.object.content.len());
        let id = self.put(parent, name, captured, created);
        self.reads.push(format!("    read {} ino {ino} nlink {nlink} size {size}, node {id}", show(name)));
        id
    }

    fn put(&mut self, parent: NodeId, name: &[u8], captured: Captured, created: bool) -> NodeId {
        let existing = self.nodes[&parent].children.get(name).copied();
        if captured.object.kind == Kind::Directory {
            if let Some(id) = existing
                && !created
                && self.nodes[&id].object.kind == Kind::Directory
            {
                let held = self.node(id);
                held.object = captured.object;
                held.ino = captured.ino;
                return id;
            }
            self.remove(parent, name);
            return self.insert(parent, name, node(captured));
        }
        self.remove(parent, name);
        let ino = captured.ino;
        if captured.nlink > 1 {
            // The names that are held of this object show what has just been read.
            for id in self.by_ino.get(&ino).cloned().unwrap_or_default() {
                if self.nodes[&id].object.kind == captured.object.kind {
                    self.node(id).object = captured.object.clone();
                }
            }
        }
        let id = self.insert(parent, name, node(captured));
        self.by_ino.entry(ino).or_default().push(id);
        id
    }

    fn insert(&mut self, parent: NodeId, name: &[u8], node: Node) -> NodeId {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.node(parent).children.insert(name.to_vec(), id);
        id
    }

    fn remove(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(id) = self.node(parent).children.remove(name) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.remove(&id) {
            if let Some(ids) = self.by_ino.get_mut(&node.ino) {
                ids.retain(|other| *other != id);
            }
            for child in node.children.into_values() {
                self.forget(child);
            }
        }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("ids of held nodes only")
    }

    /// Everything held, by path, the root as `.`.
    pub(crate) fn everything(&self) -> BTreeMap<Vec<u8>, Held<'_>> {
        let mut all = BTreeMap::new();
        let mut todo = vec![(b".".to_vec(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            let node = &self.nodes[&id];
            todo.extend(node.children.iter().map(|(name, child)| (join(&path, name), *child)));
            all.insert(path, Held { object: &node.object, ino: node.ino, node: id });
        }
        all
    }
}

fn node(captured: Captured) -> Node {
    Node { object: captured.object, ino: captured.ino, children: BTreeMap::new() }
}

/// The lines at or below `from`, at their new place; of a rescan above it, the part that has moved.
fn moved(applied: &[Applied], from: &[u8], to: &[u8]) -> Vec<Applied> {
    applied
        .iter()
        .filter_map(|line| {
            if is_at_or_below(&line.path, from) {
                let mut line = line.clone();
                line.path = [to, &line.path[from.len()..]].concat();
                return Some(line);
            }
            (line.kind == LineKind::Rescan && is_at_or_below(from, &line.path)).then(|| Applied {
                path: to.to_vec(),
                kind: LineKind::Rescan,
                object: Kind::Directory,
                recursive: line.recursive,
            })
        })
        .collect()
}

/// Renames the paths of lines at or below `from`; those at or below the replaced `to` are gone.
fn follow(applied: &mut Vec<Applied>, from: &[u8], to: &[u8]) {
    applied.retain(|line| !is_at_or_below(&line.path, to) || is_at_or_below(&line.path, from));
    for line in applied.iter_mut().filter(|line| is_at_or_below(&line.path, from)) {
        line.path = [to, &line.path[from.len()..]].concat();
    }
}
