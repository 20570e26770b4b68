//! The node table: which objects the kernel knows by which number, and under which names.
//!
//! A node id is the index of a slot and the generation of that slot, so that an id is never used twice. A node keeps no
//! descriptor (but see [`Located::fd`]). A node is kept while the kernel has looked it up, while it is open, and while a node
//! that is kept has a name in it: so every name leads to the root through nodes that are there.
//!
//! Invariant: the names change only inside the closures given to a section's `record`, and by lookups; a lookup and a change
//! of the same directory never overlap, since the kernel holds the directory's lock during both.

use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use highwater_tracker::{FileHandle, Name, ObjectType, Place};
use parking_lot::Mutex;

use crate::backing::OpenNode;
use crate::wire::abi::ROOT_ID;

/// How long the kernel may believe an answer, seconds: all modifications come through it.
pub(crate) const VALID_SECONDS: u64 = 3600;

struct Node {
    handle: FileHandle,
    names: Names,
    lookups: u64,
    open: Option<Arc<OpenNode>>,
    fd: Option<Arc<OwnedFd>>,
    /// Names that nodes of the table have in this one.
    children: u32,
    links: u32,
    kind: ObjectType,
    /// Attributes were handed out with a timeout since the last invalidation.
    attributes_cached: bool,
}

enum Names {
    None,
    One(Link),
    Many(Vec<Link>),
}

#[derive(Clone, PartialEq, Eq)]
struct Link {
    parent: u64,
    name: Name,
}

struct Slot {
    generation: u32,
    node: Option<Box<Node>>,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_handle: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

/// The node table.
pub(crate) struct Nodes(Mutex<Table>);

/// Where an object is found.
pub(crate) struct Located {
    pub(crate) handle: FileHandle,
    pub(crate) kind: ObjectType,
    /// A descriptor that is there anyway: of an open file, of an object without a name, or where objects cannot be opened by
    /// their handles.
    pub(crate) fd: Option<Arc<OwnedFd>>,
    pub(crate) open: Option<Arc<OpenNode>>,
}

/// What an object is, for the intents of a section.
pub(crate) struct Target {
    pub(crate) handle: FileHandle,
    pub(crate) kind: ObjectType,
    /// The directory of an object that has one name and one link.
    pub(crate) directory: Option<FileHandle>,
}

impl Nodes {
    pub(crate) fn new(root: FileHandle, root_fd: Arc<OwnedFd>) -> Self {
        let mut table = Table {
            // Slot 0 is never used: ids of generation 0 are the indices, and the root is 1.
            slots: vec![Slot { generation: 0, node: None }],
            free: Vec::new(),
            by_handle: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        };
        let id = table.insert(root, ObjectType::Directory, 2);
        assert_eq!(id, ROOT_ID);
        let node = table.get_mut(id).expect("the root has just been inserted");
        node.lookups = 1;
        node.fd = Some(root_fd);
        Self(Mutex::new(table))
    }

    /// Counts a lookup of an object, known or new, and adds the name by which it was found. Returns its id, and for how long
    /// its attributes may be believed.
    pub(crate) fn looked_up(&self, found: LookedUp<'_>) -> (u64, u64) {
        let mut table = self.0.lock();
        let id = match table.find(found.handle) {
            Some(id) => id,
            None => table.insert(found.handle.clone(), found.kind, found.links),
        };
        if let Some((parent, name)) = found.name {
            table.add_name(id, parent, name);
        }
        let Some(node) = table.get_mut(id) else { return (id, 0) };
        node.lookups += 1;
        node.links = found.links;
        if node.fd.is_none() {
            node.fd = found.fd.cloned();
        }
        (id, node.attribute_seconds(found.mode))
    }

    /// Takes lookups back.
    pub(crate) fn forget(&self, id: u64, lookups: u64) {
        let mut table = self.0.lock();
        if let Some(node) = table.get_mut(id) {
            node.lookups = node.lookups.saturating_sub(lookups);
        }
        table.drop_if_unused(id);
    }

    pub(crate) fn locate(&self, id: u64) -> Option<Located> {
        let table = self.0.lock();
        let node = table.get(id)?;
        Some(Located {
            handle: node.handle.clone(),
            kind: node.kind,
            fd: node.fd.clone().or_else(|| node.open.as_ref().and_then(|open| open.anchor())),
            open: node.open.clone(),
        })
    }

    pub(crate) fn handle(&self, id: u64) -> Option<FileHandle> {
        self.0.lock().get(id).map(|node| node.handle.clone())
    }

    pub(crate) fn target(&self, id: u64) -> Option<Target> {
        let table = self.0.lock();
        let node = table.get(id)?;
        let directory = match &node.names {
            Names::One(link) if node.links == 1 => table.get(link.parent).map(|parent| parent.handle.clone()),
            _ => None,
        };
        Some(Target { handle: node.handle.clone(), kind: node.kind, directory })
    }

    /// The id of an object, if the kernel knows it.
    pub(crate) fn id(&self, handle: &FileHandle) -> Option<u64> {
        self.0.lock().find(handle)
    }

    /// For how long the attributes of a node may be believed; `links` and `mode` are what they say.
    pub(crate) fn attribute_seconds(&self, id: u64, links: u32, mode: u32) -> u64 {
        self.0.lock().get_mut(id).map_or(0, |node| {
            node.links = links;
            node.attribute_seconds(mode)
        })
    }

    /// The record of the opens of a node; made if there is none.
    pub(crate) fn open_node(&self, id: u64) -> Option<Arc<OpenNode>> {
        let mut table = self.0.lock();
        let node = table.get_mut(id)?;
        Some(Arc::clone(node.open.get_or_insert_with(|| Arc::new(OpenNode::default()))))
    }

    /// Drops the record of the opens of a node, when the last is gone.
    pub(crate) fn open_node_ended(&self, id: u64, ended: &Arc<OpenNode>) {
        let mut table = self.0.lock();
        if let Some(node) = table.get_mut(id)
            && node.open.as_ref().is_some_and(|open| Arc::ptr_eq(open, ended))
        {
            node.open = None;
        }
        table.drop_if_unused(id);
    }

    /// The attributes of a node must be asked for each time from now on. True if some may be cached with a timeout.
    ///
    /// The caller has raised the count of mappable opens of the node's [`OpenNode`] before.
    pub(crate) fn take_attributes_cached(&self, id: u64) -> bool {
        self.0.lock().get_mut(id).is_some_and(|node| std::mem::take(&mut node.attributes_cached))
    }

    /// Keeps a descriptor of an object that has lost its last name, until the kernel forgets it.
    pub(crate) fn keep_descriptor(&self, handle: &FileHandle, fd: Arc<OwnedFd>) {
        let mut table = self.0.lock();
        if let Some(id) = table.find(handle)
            && let Some(node) = table.get_mut(id)
        {
            node.fd.get_or_insert(fd);
        }
    }

    /// A name is gone; as part of a section's record.
    pub(crate) fn remove_name(&self, handle: &FileHandle, parent: u64, name: &[u8]) {
        let mut table = self.0.lock();
        if let Some(id) = table.find(handle) {
            if let Some(node) = table.get_mut(id) {
                node.links =
                    if node.kind == ObjectType::Directory { 0 } else { node.links.saturating_sub(1) };
            }
            table.remove_name(id, parent, name);
        }
    }

    /// A name has moved; as part of a section's record.
    pub(crate) fn move_name(&self, handle: &FileHandle, from: (u64, &[u8]), to: (u64, &[u8])) {
        let mut table = self.0.lock();
        if let Some(id) = table.find(handle) {
            table.add_name(id, to.0, to.1);
            table.remove_name(id, from.0, from.1);
        }
    }

    /// The names of an object; `None` if the kernel does not know it.
    pub(crate) fn places(&self, handle: &FileHandle) -> Option<Vec<Place>> {
        let table = self.0.lock();
        let node = table.get(table.find(handle)?)?;
        let place = |link: &Link| {
            let parent = table.get(link.parent)?.handle.clone();
            Some(Place { parent, name: link.name.clone() })
        };
        Some(node.links().iter().filter_map(place).collect())
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().by_handle.len()
    }
}

/// An object that was found by a lookup or has just been made.
pub(crate) struct LookedUp<'a> {
    pub(crate) handle: &'a FileHandle,
    pub(crate) kind: ObjectType,
    pub(crate) links: u32,
    pub(crate) mode: u32,
    pub(crate) name: Option<(u64, &'a [u8])>,
    pub(crate) fd: Option<&'a Arc<OwnedFd>>,
}

impl Node {
    fn attribute_seconds(&mut self, mode: u32) -> u64 {
        if let Some(open) = &self.open {
            // A passthrough write takes these bits from the lower file, and the kernel does not see that ours has lost them.
            let may_lose_privileges = mode & (libc::S_ISUID | libc::S_ISGID) != 0;
            if open.may_be_stored_into() || may_lose_privileges {
                return 0;
            }
        }
        self.attributes_cached = true;
        VALID_SECONDS
    }

    fn links(&self) -> &[Link] {
        match &self.names {
            Names::None => &[],
            Names::One(link) => std::slice::from_ref(link),
            Names::Many(links) => links,
        }
    }
}

impl Table {
    fn get(&self, id: u64) -> Option<&Node> {
        let (index, generation) = split(id);
        let slot = self.slots.get(index)?;
        if slot.generation == generation { slot.node.as_deref() } else { None }
    }

    fn get_mut(&mut self, id: u64) -> Option<&mut Node> {
        let (index, generation) = split(id);
        let slot = self.slots.get_mut(index)?;
        if slot.generation == generation { slot.node.as_deref_mut() } else { None }
    }

    fn hash(&self, handle: &FileHandle) -> u64 {
        self.hasher.hash_one(handle.as_bytes())
    }

    fn find(&self, handle: &FileHandle) -> Option<u64> {
        let index = *self.by_handle.find(self.hash(handle), |index| {
            self.slots[*index as usize].node.as_ref().is_some_and(|node| node.handle == *handle)
        })?;
        Some(join(index, self.slots[index as usize].generation))
    }

    fn insert(&mut self, handle: FileHandle, kind: ObjectType, links: u32) -> u64 {
        let hash = self.hash(&handle);
        let node = Box::new(Node {
            handle,
            names: Names::None,
            lookups: 0,
            open: None,
            fd: None,
            children: 0,
            links,
            kind,
            attributes_cached: false,
        });
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize].node = Some(node);
                index
            }
            None => {
                self.slots.push(Slot { generation: 0, node: Some(node) });
                u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 nodes fit into memory")
            }
        };
        let Self { slots, hasher, .. } = self;
        self.by_handle.insert_unique(hash, index, |index| {
            let node = slots[*index as usize].node.as_ref();
            node.map_or(0, |node| hasher.hash_one(node.handle.as_bytes()))
        });
        join(index, self.slots[index as usize].generation)
    }

    fn add_name(&mut self, id: u64, parent: u64, name: &[u8]) {
        if id == ROOT_ID || self.get(parent).is_none() {
            return;
        }
        let Some(node) = self.get_mut(id) else { return };
        if node.links().iter().any(|link| link.parent == parent && *link.name == *name) {
            return;
        }
        let link = Link { parent, name: name.into() };
        let mut replaced = None;
        node.names = match std::mem::replace(&mut node.names, Names::None) {
            // A directory has one name: the kernel found it at a new one, so the old one is history.
            Names::One(old) if node.kind == ObjectType::Directory => {
                replaced = Some(old.parent);
                Names::One(link)
            }
            Names::None => Names::One(link),
            Names::One(old) => Names::Many(vec![old, link]),
            Names::Many(mut links) => {
                links.push(link);
                Names::Many(links)
            }
        };
        if let Some(parent) = self.get_mut(parent) {
            parent.children += 1;
        }
        if let Some(old) = replaced {
            self.child_gone(old);
        }
    }

    fn remove_name(&mut self, id: u64, parent: u64, name: &[u8]) {
        let Some(node) = self.get_mut(id) else { return };
        let is_it = |link: &Link| link.parent == parent && *link.name == *name;
        let mut gone = false;
        node.names = match std::mem::replace(&mut node.names, Names::None) {
            Names::One(link) if is_it(&link) => {
                gone = true;
                Names::None
            }
            Names::Many(mut links) => {
                let before = links.len();
                links.retain(|link| !is_it(link));
                gone = links.len() < before;
                match links.len() {
                    0 => Names::None,
                    1 => Names::One(links.remove(0)),
                    _ => Names::Many(links),
                }
            }
            names => names,
        };
        if gone {
            self.child_gone(parent);
        }
    }

    fn child_gone(&mut self, parent: u64) {
        if let Some(node) = self.get_mut(parent) {
            node.children -= 1;
        }
        self.drop_if_unused(parent);
    }

    /// Drops a node that nothing needs, and then its directories, as far as they were kept for it.
    fn drop_if_unused(&mut self, id: u64) {
        let mut unused = vec![id];
        while let Some(id) = unused.pop() {
            let (index, _) = split(id);
            let Some(node) = self.get(id) else { continue };
            if node.lookups > 0 || node.children > 0 || node.open.is_some() || id == ROOT_ID {
                continue;
            }
            let hash = self.hash(&node.handle);
            let index_u32 = u32::try_from(index).unwrap_or(u32::MAX);
            if let Ok(entry) = self.by_handle.find_entry(hash, |other| *other == index_u32) {
                entry.remove();
            }
            let slot = &mut self.slots[index];
            let Some(node) = slot.node.take() else { continue };
            slot.generation += 1;
            self.free.push(index_u32);
            for link in node.links() {
                if let Some(parent) = self.get_mut(link.parent) {
                    parent.children -= 1;
                    unused.push(link.parent);
                }
            }
        }
    }
}

fn split(id: u64) -> (usize, u32) {
    #[allow(clippy::cast_possible_truncation, reason = "the two halves are what is wanted")]
    (id as u32 as usize, (id >> 32) as u32)
}

fn join(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(n: u8) -> FileHandle {
        FileHandle::new(1, &[n; 8]).unwrap()
    }

    fn nodes() -> Nodes {
        Nodes::new(handle(0), Arc::new(std::fs::File::open("/dev/null").unwrap().into()))
    }

    fn look_up(nodes: &Nodes, n: u8, kind: ObjectType, parent: u64, name: &[u8]) -> u64 {
        let handle = handle(n);
        nodes
            .looked_up(LookedUp {
                handle: &handle,
                kind,
                links: 1,
                mode: 0,
                name: Some((parent, name)),
                fd: None,
            })
            .0
    }

    #[test]
    fn an_id_is_never_used_twice() {
        let nodes = nodes();
        let a = look_up(&nodes, 1, ObjectType::File, ROOT_ID, b"a");
        nodes.forget(a, 1);
        assert!(nodes.locate(a).is_none());
        let b = look_up(&nodes, 2, ObjectType::File, ROOT_ID, b"b");
        assert_ne!(a, b);
        assert!(nodes.locate(a).is_none());
        assert!(nodes.locate(b).is_some());
    }

    #[test]
    fn a_forgotten_directory_stays_while_a_name_in_it_is_known() {
        let nodes = nodes();
        let d = look_up(&nodes, 1, ObjectType::Directory, ROOT_ID, b"d");
        let f = look_up(&nodes, 2, ObjectType::File, d, b"f");
        nodes.forget(d, 1);
        assert_eq!(nodes.places(&handle(2)).unwrap(), [Place { parent: handle(1), name: (*b"f").into() }]);
        nodes.forget(f, 1);
        assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn names_follow_links_renames_and_removals() {
        let nodes = nodes();
        let d = look_up(&nodes, 1, ObjectType::Directory, ROOT_ID, b"d");
        look_up(&nodes, 2, ObjectType::File, ROOT_ID, b"a");
        look_up(&nodes, 2, ObjectType::File, ROOT_ID, b"a");
        assert_eq!(nodes.places(&handle(2)).unwrap().len(), 1);
        look_up(&nodes, 2, ObjectType::File, d, b"b");
        assert_eq!(nodes.places(&handle(2)).unwrap().len(), 2);
        nodes.move_name(&handle(2), (ROOT_ID, b"a"), (d, b"c"));
        nodes.remove_name(&handle(2), d, b"b");
        assert_eq!(nodes.places(&handle(2)).unwrap(), [Place { parent: handle(1), name: (*b"c").into() }]);
        nodes.move_name(&handle(1), (ROOT_ID, b"d"), (ROOT_ID, b"e"));
        assert_eq!(nodes.places(&handle(1)).unwrap()[0].name.as_ref(), b"e");
    }

    #[test]
    fn a_node_is_small() {
        assert!(size_of::<Node>() <= 120, "{} bytes", size_of::<Node>());
    }
}
