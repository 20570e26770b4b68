//! Opening a volume, and what a crash has left.
//!
//! At open, the journal is read from the newest stable horizon on; that is as much as was written since, whatever the size of
//! the tree. If the tracker before this one did not stop cleanly, everything that has an intent since the horizon is told
//! again, in a new period behind a `Started` record:
//!
//! - a covered directory: `rescan`, and `rescan` of the whole subtree for each directory in it that was born since the
//!   horizon's window began (no birth time: for each);
//! - a directory that was to be moved: `rescan` of the whole subtree;
//! - a covered object: by its names.
//!
//! What cannot be told this way makes consumers fresh: a damaged journal, records that were lost, a relaxed volume after a
//! power loss. Where changes may have been made unseen after the tracker ended, a catch-up scan follows (`catch_up`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use highwater_journal::{Journal, JournalId, OpenError, Period, Storage, Usn};

use crate::catch_up::CLOCK_SLACK;
use crate::change::{ObjectType, Place};
use crate::consumers::Consumers;
use crate::coverage::BIRTH_SLACK;
use crate::cursor::CheckpointId;
use crate::error::{OpenVolumeError, RequestError, with_causes};
use crate::handle::FileHandle;
use crate::log::parents;
use crate::mutation::{self, Mutation};
use crate::record::Body;
use crate::source::{Entry, Source};
use crate::state_file;
use crate::tracker::{Config, Durability, Shared, Tracker, VolumeFacts};

/// What [`Tracker::open`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Opening {
    /// The state was new.
    pub new: bool,
    /// The tracker before this one did not stop cleanly.
    pub crashed: bool,
    /// Directories and objects that will be handed out again because of that.
    pub recovered: u64,
    /// A catch-up scan will begin with [`Tracker::start`].
    pub catching_up: bool,
    /// Every consumer is fresh, and why.
    pub fresh: Option<String>,
}

/// What the journal says since the stable horizon.
#[derive(Debug, Default)]
pub(crate) struct Found {
    directories: BTreeSet<FileHandle>,
    moves: BTreeSet<FileHandle>,
    objects: BTreeMap<FileHandle, Option<Vec<Place>>>,
    /// Directories born before this are not new; nanoseconds since the epoch.
    window_began_ns: u64,
    /// Since when changes may have been made unseen; nanoseconds since the epoch.
    gap_began_ns: Option<u64>,
    crashed: bool,
    lost: Option<String>,
    /// There may be changes that are in no intent of this journal and not on stable storage either.
    unsynced: bool,
}

impl Found {
    /// The tracker before this one did not stop cleanly.
    pub(crate) fn has_crashed(&self) -> bool {
        self.crashed
    }
}

/// What the scan of the journal adds to it.
#[derive(Debug)]
struct Scan {
    found: Found,
    stable: CheckpointId,
    sealed: CheckpointId,
    stopped: bool,
    boot_id: Option<String>,
    last_time_ns: u64,
}

/// The state file that says what the volume is.
const FILE: &str = "volume";

impl<S: Storage> Tracker<S> {
    /// Opens the state, or makes it if it is empty. Nothing is tracked until [`Tracker::start`].
    ///
    /// # Errors
    /// [`OpenVolumeError`]. A damaged journal is no error: a new one takes its place, and every consumer becomes fresh.
    pub fn open(
        storage: S,
        facts: VolumeFacts,
        config: Config,
    ) -> Result<(Arc<Self>, Opening), OpenVolumeError> {
        let storage = Arc::new(storage);
        let failed = |doing| move |source| OpenVolumeError::Io { doing, source };
        let volume = match state_file::read(&storage, FILE) {
            Ok(volume) => volume.map(Volume::decode),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Some(None),
            Err(error) => return Err(failed("read the state")(error)),
        };
        let consumers = match Consumers::read(&storage) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            read => Some(read.map_err(failed("read the consumers"))?),
        };
        let mut damage = consumers.is_none().then(|| "the list of consumers is damaged".to_owned());
        let mut opened = None;
        if let Some(Some(volume)) = &volume {
            if volume.root != facts.root {
                return Err(OpenVolumeError::OtherVolume { directory: volume.directory.clone() });
            }
            match Journal::open(Arc::clone(&storage), config.journal.clone()) {
                Ok(journal) => opened = Some(journal),
                Err(source @ OpenError::NewerFormat { .. }) => {
                    return Err(OpenVolumeError::NewerFormat { source });
                }
                Err(error @ (OpenError::Damaged(_) | OpenError::Missing)) => {
                    damage = Some(with_causes(&error))
                }
                Err(source) => return Err(OpenVolumeError::Journal { source }),
            }
        } else if volume.is_some() {
            damage = Some("the state file volume is damaged".to_owned());
        }
        if damage.is_some() && consumers.is_none() {
            // Nobody knows any more what was acked: the journal cannot be gone on with.
            opened = None;
        }
        let is_new = volume.is_none();
        let fsid = match &volume {
            Some(Some(volume)) => volume.fsid.clone(),
            _ => config.random().map(new_fsid).map_err(failed("get random numbers"))?,
        };
        let (journal, scan) = match opened {
            Some((journal, recovered)) => {
                let scan = scan(&journal, recovered.last_period.unwrap_or(Period(0)));
                (journal, scan)
            }
            None => {
                Journal::discard(&storage).map_err(failed("remove the remains of a journal"))?;
                let id = JournalId(config.random().map_err(failed("get random numbers"))?);
                let journal = Journal::create(Arc::clone(&storage), id, config.journal.clone())
                    .map_err(|source| OpenVolumeError::Journal { source })?;
                (journal, Scan::of_new_journal(config.now_ns()))
            }
        };
        let volume =
            Volume { fsid: fsid.clone(), root: facts.root.clone(), directory: facts.directory.clone() };
        state_file::write(&storage, FILE, volume.encode()).map_err(failed("store the state"))?;

        let last_period = journal.last_period();
        let random = config.random().map_err(failed("get random numbers"))?;
        let Scan { mut found, stable, sealed, stopped, boot_id, last_time_ns } = scan;
        let is_journal_new = boot_id.is_none();
        found.crashed = !stopped && !is_journal_new;
        let same_boot = boot_id.as_deref() == Some(facts.boot_id.as_str());
        if found.crashed && !same_boot && config.durability == Durability::Relaxed {
            found
                .lost
                .get_or_insert_with(|| "a relaxed volume was not stopped before the system was".to_owned());
        }
        if !is_journal_new && !facts.unbroken {
            if config.now_ns() + slack_ns(CLOCK_SLACK) < last_time_ns {
                found
                    .lost
                    .get_or_insert_with(|| "the clock went back while the volume was not tracked".to_owned());
            }
            // A source in place records what has happened at checkpoints only. The window of the stable horizon began before the
            // checkpoint that everything older is in, whatever the source was.
            let since_ns = found.window_began_ns;
            found.gap_began_ns.get_or_insert(since_ns);
        }
        // Also if a tracker before this one has been killed before it could sync.
        found.unsynced = stable == CheckpointId(0) || !facts.unbroken;
        if !found.crashed {
            found.directories.clear();
            found.moves.clear();
            found.objects.clear();
        }
        let opening = Opening {
            new: is_new,
            crashed: found.crashed,
            recovered: (found.directories.len() + found.moves.len() + found.objects.len()) as u64,
            catching_up: found.gap_began_ns.is_some() && found.lost.is_none(),
            fresh: damage.or_else(|| found.lost.clone()),
        };
        let facts_through = if found.crashed { stable } else { CheckpointId(last_period.0) };
        let period = first_period(last_period, random);
        let started =
            Body::Started { stable: facts_through, time_ns: config.now_ns(), boot_id: facts.boot_id.clone() };
        let gap = found.gap_began_ns.map(|began_ns| Body::Gap { began_ns });
        let gap = gap.filter(|_| !mutation::is(Mutation::GapNotRecorded));
        let lost = found.lost.clone().map(|reason| Body::Lost { reason });
        // In this order: a start that is on record without these would hide what was changed or lost before it.
        begin(&journal, period, lost.into_iter().chain(gap).chain([started]))
            .map_err(failed("write to the journal"))?;
        let consumers = consumers.unwrap_or_default();
        let shared = Shared::new(config, facts, fsid, journal, period, sealed, stable, consumers, found);
        Ok((Arc::new(Self { shared: Arc::new(shared) }), opening))
    }
}

/// The first period of a tracker: a random number of periods is left out behind the last one of the tracker before.
///
/// If an older copy of the state is put back, its numbers are used again. A cursor from after the copy then leads into the part
/// that was left out, or beyond, and not to a checkpoint of other contents (`Shared::has_sealed`); but for one chance in 2^32 for each
/// checkpoint that is made before the cursor is used.
fn first_period(last: Period, random: [u8; 16]) -> Period {
    if last == Period(0) {
        return Period(1);
    }
    let [a, b, c, d, ..] = random;
    Period(last.0 + 1 + u64::from(u32::from_le_bytes([a, b, c, d])))
}

/// Writes the records that a new tracker begins with, durably.
fn begin<S: Storage>(
    journal: &Journal<S>,
    period: Period,
    records: impl Iterator<Item = Body>,
) -> io::Result<()> {
    for body in records {
        let (kind, payload) = body.encode();
        let usn =
            journal.append(kind, period, &payload).map_err(|error| io::Error::other(with_causes(&error)))?;
        journal.sync(usn).map_err(|error| io::Error::other(with_causes(&error)))?;
    }
    Ok(())
}

impl Scan {
    fn of_new_journal(now_ns: u64) -> Self {
        Self {
            found: Found { window_began_ns: now_ns, ..Found::default() },
            stable: CheckpointId(0),
            sealed: CheckpointId(0),
            stopped: true,
            boot_id: None,
            last_time_ns: 0,
        }
    }
}

/// Reads the journal from the stable horizon on.
fn scan<S: Storage>(journal: &Journal<Arc<S>>, last_period: Period) -> Scan {
    let (begin, boot_id) = horizon(journal);
    let mut scan = Scan {
        found: Found::default(),
        stable: CheckpointId(0),
        sealed: CheckpointId(0),
        stopped: false,
        boot_id: Some(boot_id),
        last_time_ns: 0,
    };
    let mut intents: Vec<(Usn, Body)> = Vec::new();
    let mut from = Usn(0);
    let mut first_started_ns = None;
    for record in journal.records(begin) {
        let decoded = record.map_err(|error| with_causes(&error)).and_then(|record| {
            let body = Body::decode(record.kind, &record.payload).map_err(|error| error.to_string())?;
            Ok((record.usn, record.period, body))
        });
        let (usn, period, body) = match decoded {
            Ok(record) => record,
            Err(reason) => {
                scan.found.lost = Some(reason);
                break;
            }
        };
        scan.stopped = matches!(body, Body::Stopped { .. });
        match body {
            Body::IntentDirectory { .. } | Body::IntentObject { .. } | Body::IntentMove { .. } => {
                intents.push((usn, body))
            }
            Body::Seal { time_ns } => {
                scan.sealed = CheckpointId(period.0);
                scan.last_time_ns = scan.last_time_ns.max(time_ns);
            }
            Body::Stopped { time_ns } => scan.last_time_ns = scan.last_time_ns.max(time_ns),
            Body::Started { time_ns, boot_id, .. } => {
                scan.boot_id = Some(boot_id);
                scan.last_time_ns = scan.last_time_ns.max(time_ns);
                first_started_ns.get_or_insert(time_ns);
            }
            Body::Stable { checkpoint, intents_from, time_ns } => {
                scan.stable = checkpoint;
                scan.sealed = scan.sealed.max(checkpoint);
                from = intents_from;
                scan.found.window_began_ns = time_ns;
                scan.found.lost = None;
                scan.found.gap_began_ns = None;
                scan.last_time_ns = scan.last_time_ns.max(time_ns);
            }
            Body::Lost { reason } => scan.found.lost = Some(reason),
            // The catch-up may not have ended, and what it found is not stable.
            Body::Gap { began_ns } => {
                let earlier = scan.found.gap_began_ns.map_or(began_ns, |earlier| earlier.min(began_ns));
                scan.found.gap_began_ns = Some(earlier);
            }
            _ => {}
        }
    }
    if from == Usn(0) {
        scan.found.window_began_ns = first_started_ns.unwrap_or(0);
    }
    for (_, body) in intents.into_iter().filter(|(usn, _)| *usn >= from) {
        match body {
            Body::IntentDirectory { directory } => drop(scan.found.directories.insert(directory)),
            Body::IntentMove { directory } => drop(scan.found.moves.insert(directory)),
            Body::IntentObject { object, places } => drop(scan.found.objects.insert(object, places)),
            _ => {}
        }
    }
    tracing::debug!(%last_period, stable = scan.stable.0, stopped = scan.stopped, "read the journal");
    scan
}

/// Where to begin to read, at or before the first intent that still counts, and in which boot that was written: the record of the
/// start may stand before it.
fn horizon<S: Storage>(journal: &Journal<Arc<S>>) -> (Usn, String) {
    // A damaged or missing file costs time, no more: the horizon is in the journal too.
    let Ok(Some(lines)) = state_file::read(journal.storage(), crate::horizon::FILE) else {
        return (journal.oldest_usn_kept(), String::new());
    };
    let value = |key: &str| {
        let value = lines.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        value.and_then(|value| String::from_utf8(value.clone()).ok())
    };
    let usn = value("intents-from").and_then(|usn| usn.parse().ok()).map_or(Usn(0), Usn);
    (usn.max(journal.oldest_usn_kept()), value("boot-id").unwrap_or_default())
}

impl<S: Storage> Shared<S> {
    /// Tells what was found at open, and begins the catch-up.
    pub(crate) fn tell_found(self: &Arc<Self>, found: Found) -> Result<(), RequestError> {
        if let Some(reason) = found.lost {
            let recorded = self.log.lock().record_lost(&self.journal, reason);
            self.after_record(recorded);
            if found.unsynced {
                self.begin_catch_up(None);
            }
            return Ok(());
        }
        if found.crashed {
            // The period is handed out even if it is empty: the answer must not go past the `Started` record unseen.
            self.log.lock().is_changed = true;
            let source = Arc::clone(self.source());
            self.tell_found_by(&*source, &found)
                .map_err(|source| RequestError::Source { doing: "recover", source })?;
        }
        let gap_began_ns = found.gap_began_ns.map(|began_ns| began_ns.saturating_sub(slack_ns(CLOCK_SLACK)));
        if found.unsynced || gap_began_ns.is_some() {
            self.begin_catch_up(gap_began_ns);
        }
        Ok(())
    }

    fn tell_found_by(&self, source: &dyn Source, found: &Found) -> io::Result<()> {
        match self.tell_each_found(source, found) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                // G5: what cannot be looked for is not taken for gone.
                self.tell_rescan(source, &self.facts.root, true);
                Ok(())
            }
            told => told,
        }
    }

    fn tell_each_found(&self, source: &dyn Source, found: &Found) -> io::Result<()> {
        let born_since_ns = found.window_began_ns.saturating_sub(slack_ns(BIRTH_SLACK));
        let mut objects = existing_objects(source, found)?;
        let has_nameless = objects.values().any(|object| object.places.is_empty());
        for directory in &found.directories {
            let mut born = Vec::new();
            let is_there = source.walk(directory, &mut |entry| {
                born.extend(new_directory(entry, born_since_ns)?);
                if has_nameless
                    && let Some((object, ObjectType::File)) = entry.object()?
                    && let Some(existing) = objects.get_mut(&object)
                {
                    let place = Place { parent: directory.clone(), name: entry.name().into() };
                    existing.places.extend((!existing.places.contains(&place)).then_some(place));
                }
                Ok(())
            })?;
            if !is_there {
                continue;
            }
            self.tell_rescan(source, directory, false);
            if mutation::is(Mutation::NoBirthWalk) {
                continue;
            }
            for child in &born {
                self.tell_rescan(source, child, true);
            }
        }
        for directory in &found.moves {
            if source.sample(directory)?.is_some() {
                self.tell_rescan(source, directory, true);
            }
        }
        for (object, Existing { places, nlink }) in objects {
            let near = parents(&places);
            let is_somewhere_else = places.is_empty() && nlink > 0;
            let body = Body::Recovered {
                object,
                object_type: ObjectType::File,
                places: (!is_somewhere_else).then(|| places.clone()),
            };
            let recorded = self.log.lock().record_found(&self.journal, source, &near, &body);
            self.after_record(recorded);
        }
        Ok(())
    }

    pub(crate) fn tell_rescan(&self, source: &dyn Source, directory: &FileHandle, recursive: bool) {
        let body = Body::Rescan { directory: directory.clone(), recursive };
        let recorded = self.log.lock().record_found(&self.journal, source, &[directory], &body);
        self.after_record(recorded);
    }
}

/// An object that had an intent of its own and still exists.
struct Existing {
    /// Names that lead to it.
    places: Vec<Place>,
    /// How many it has.
    nlink: u64,
}

/// The objects that had an intent of their own and still exist, each with those names in its intent that still lead to it.
///
/// Not all need be there: a name may have been unknown at the time of the intent, and those that were known be gone since. What was
/// made since is in a directory that had an intent.
fn existing_objects(source: &dyn Source, found: &Found) -> io::Result<BTreeMap<FileHandle, Existing>> {
    let mut objects = BTreeMap::new();
    for (object, intended) in &found.objects {
        let Some(sample) = source.sample(object)? else { continue };
        let mut places = Vec::new();
        for place in intended.iter().flatten() {
            if source.leads_to(place)?.as_ref() == Some(object) {
                places.push(place.clone());
            }
        }
        objects.insert(object.clone(), Existing { places, nlink: sample.nlink });
    }
    Ok(objects)
}

/// The handle of an entry, if it is a directory that was born since then, or may have been.
fn new_directory(entry: &dyn Entry, born_since_ns: u64) -> io::Result<Option<FileHandle>> {
    if !entry.may_be_directory() {
        return Ok(None);
    }
    let Some(times) = entry.times()? else { return Ok(None) };
    if times.born_ns.is_some_and(|born_ns| born_ns < i128::from(born_since_ns)) {
        return Ok(None);
    }
    let found = entry.object()?;
    Ok(found.filter(|(_, object_type)| *object_type == ObjectType::Directory).map(|(handle, _)| handle))
}

pub(crate) fn slack_ns(slack: Duration) -> u64 {
    u64::try_from(slack.as_nanos()).unwrap_or(u64::MAX)
}

/// What the state directory is of.
#[derive(Clone, Debug)]
struct Volume {
    fsid: String,
    root: FileHandle,
    directory: PathBuf,
}

impl Volume {
    fn encode(&self) -> [(&'static str, Vec<u8>); 3] {
        [
            ("fsid", self.fsid.clone().into_bytes()),
            ("root", self.root.as_bytes().to_vec()),
            ("directory", self.directory.as_os_str().as_bytes().to_vec()),
        ]
    }

    fn decode(lines: Vec<(String, Vec<u8>)>) -> Option<Self> {
        let value = |key: &str| lines.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        Some(Self {
            fsid: String::from_utf8(value("fsid")?).ok()?,
            root: FileHandle::from_bytes(&value("root")?)?,
            directory: PathBuf::from(std::ffi::OsStr::from_bytes(&value("directory")?)),
        })
    }
}

/// A random UUID (version 4, RFC 9562).
fn new_fsid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
