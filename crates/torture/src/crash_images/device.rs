//! The recorded devices: what reaches them, in one global order, and the images that a crash may leave of it.
//!
//! A device has a *base*, what is stable, and may have a *top*, what was written over it. While a run is recorded, each write
//! goes to the top and to the log. For a crash state the base is moved forward to the last flush before the cut, the top is
//! what the state keeps of the writes behind it, and what the recovering filesystem writes goes to the top as well, unlogged.
//! So a state costs what differs, not the size of the device.
//!
//! Invariant: the order of the log is the order in which requests arrived, over both devices; a request is in the log before it
//! is answered. So whoever has seen an effect of a request finds it before the cut of his moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;

pub(crate) const PAGE: usize = 4096;

/// The tracked filesystem's device in the log.
pub(crate) const TRACKED: usize = 0;
/// The journal's device in the log.
pub(crate) const JOURNAL: usize = 1;
/// What the devices are called, in this order.
pub(crate) const NAMES: [&str; 2] = ["tracked", "journal"];

type Page = Arc<[u8; PAGE]>;

/// What reached a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Write(Arc<[u8]>),
    /// Zeros, or a discard: the loop driver makes holes for both.
    Zero(u64),
    /// All that was answered before is stable when this is answered.
    Flush,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) device: usize,
    pub(crate) offset: u64,
    pub(crate) operation: Operation,
}

impl Entry {
    fn length(&self) -> usize {
        match &self.operation {
            Operation::Write(data) => data.len(),
            Operation::Zero(length) => *length as usize,
            Operation::Flush => 0,
        }
    }
}

/// The content of a device, sparse.
#[derive(Clone, Default)]
pub(crate) struct Image {
    pub(crate) pages: HashMap<u64, Page>,
}

/// What a crash leaves of the writes that no flush made stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subset {
    /// None of them: the state at the last flush.
    Stable,
    /// All: the prefix of the log at the cut.
    All,
    /// Each with this probability, in thousandths. Of one in three of those that arrive, only a part does, cut at
    /// multiples of `sector` bytes.
    Random { seed: u64, keep: u32, sector: usize },
}

struct Device {
    size: u64,
    base: Image,
    /// `None`: writes go to the base (the filesystem is being made).
    top: Option<HashMap<u64, Box<[u8; PAGE]>>>,
    is_recording: bool,
}

/// Both devices and their log.
pub(crate) struct Devices {
    devices: [Mutex<Device>; 2],
    log: Mutex<Vec<Entry>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parts of a range, by page: page number, offset in it, length, offset in the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let count = (PAGE - within).min(length - done);
        let part = (at / PAGE as u64, within, count, done);
        done += count;
        Some(part)
    })
}

impl Image {
    fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, within, count, from) in parts(offset, data.len()) {
            let bytes = &data[from..from + count];
            if count == PAGE && bytes.iter().all(|byte| *byte == 0) {
                self.pages.remove(&page);
                continue;
            }
            let page = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + count].copy_from_slice(bytes);
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        for (page, within, count, _) in parts(offset, length as usize) {
            if count == PAGE {
                self.pages.remove(&page);
            } else if let Some(page) = self.pages.get_mut(&page) {
                Arc::make_mut(page)[within..within + count].fill(0);
            }
        }
    }

    fn apply(&mut self, entry: &Entry) {
        match &entry.operation {
            Operation::Write(data) => self.write(entry.offset, data),
            Operation::Zero(length) => self.zero(entry.offset, *length),
            Operation::Flush => {}
        }
    }
}

impl Device {
    fn top_page<'a>(
        base: &Image,
        top: &'a mut HashMap<u64, Box<[u8; PAGE]>>,
        page: u64,
    ) -> &'a mut [u8; PAGE] {
        top.entry(page).or_insert_with(|| {
            base.pages.get(&page).map_or_else(|| Box::new([0; PAGE]), |page| Box::new(**page))
        })
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(top) = &mut self.top else { return self.base.write(offset, data) };
        for (page, within, count, from) in parts(offset, data.len()) {
            Self::top_page(&self.base, top, page)[within..within + count]
                .copy_from_slice(&data[from..from + count]);
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let Some(top) = &mut self.top else { return self.base.zero(offset, length) };
        for (page, within, count, _) in parts(offset, length as usize) {
            Self::top_page(&self.base, top, page)[within..within + count].fill(0);
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        for (page, within, count, from) in parts(offset, out.len()) {
            let to = &mut out[from..from + count];
            if let Some(page) = self.top.as_ref().and_then(|top| top.get(&page)) {
                to.copy_from_slice(&page[within..within + count]);
            } else if let Some(page) = self.base.pages.get(&page) {
                to.copy_from_slice(&page[within..within + count]);
            } else {
                to.fill(0);
            }
        }
    }
}

impl Devices {
    /// Devices of these sizes, all zeros; what is written goes to the base.
    pub(crate) fn new(sizes: [u64; 2]) -> Self {
        let device =
            |size| Mutex::new(Device { size, base: Image::default(), top: None, is_recording: false });
        Self { devices: sizes.map(device), log: Mutex::new(Vec::new()) }
    }

    pub(crate) fn size(&self, device: usize) -> u64 {
        lock(&self.devices[device]).size
    }

    pub(crate) fn read(&self, device: usize, offset: u64, out: &mut [u8]) {
        lock(&self.devices[device]).read(offset, out);
    }

    pub(crate) fn write(&self, device: usize, offset: u64, data: &[u8]) {
        let mut held = lock(&self.devices[device]);
        if held.is_recording {
            self.push(Entry { device, offset, operation: Operation::Write(data.into()) });
        }
        held.write(offset, data);
    }

    pub(crate) fn zero(&self, device: usize, offset: u64, length: u64) {
        let mut held = lock(&self.devices[device]);
        let length = length.min(held.size.saturating_sub(offset));
        if held.is_recording {
            self.push(Entry { device, offset, operation: Operation::Zero(length) });
        }
        held.zero(offset, length);
    }

    pub(crate) fn flush(&self, device: usize) {
        let held = lock(&self.devices[device]);
        if held.is_recording {
            self.push(Entry { device, offset: 0, operation: Operation::Flush });
        }
    }

    fn push(&self, entry: Entry) {
        lock(&self.log).push(entry);
    }

    /// How much has been logged: the cut of this moment.
    pub(crate) fn position(&self) -> usize {
        lock(&self.log).len()
    }

    /// Begins to log. What has been written until now is the base. Gives both bases.
    pub(crate) fn record(&self) -> [Image; 2] {
        [TRACKED, JOURNAL].map(|device| {
            let mut held = lock(&self.devices[device]);
            held.top = Some(HashMap::new());
            held.is_recording = true;
            held.base.clone()
        })
    }

    /// Ends the log and gives it out.
    pub(crate) fn end_recording(&self) -> Vec<Entry> {
        for device in &self.devices {
            lock(device).is_recording = false;
        }
        std::mem::take(&mut *lock(&self.log))
    }

    /// Serves an image; what is written to it goes to the log if `record` is set. Nobody may have the device open.
    pub(crate) fn serve(&self, device: usize, image: Image, record: bool) {
        let mut held = lock(&self.devices[device]);
        held.base = image;
        held.top = Some(HashMap::new());
        held.is_recording = record;
    }
}

/// Moves what is stable of one device forward along the log.
pub(crate) struct Stable {
    device: usize,
    pub(crate) image: Image,
    /// The log up to here has been looked at, and all of this device's in it applied.
    applied: usize,
}

impl Stable {
    pub(crate) fn new(device: usize, base: Image) -> Self {
        Self { device, image: base, applied: 0 }
    }

    /// Applies all that is stable at a cut. Cuts may only go forward.
    pub(crate) fn advance(&mut self, log: &[Entry], cut: usize) {
        let is_flush = |entry: &Entry| entry.device == self.device && entry.operation == Operation::Flush;
        let flushed = log[self.applied..cut].iter().rposition(is_flush);
        if let Some(flushed) = flushed {
            let end = self.applied + flushed + 1;
            for entry in log[self.applied..end].iter().filter(|entry| entry.device == self.device) {
                self.image.apply(entry);
            }
            self.applied = end;
        }
    }

    /// The image of a state: what is stable, and what it keeps of the rest. To be called after `advance` to the same cut.
    pub(crate) fn state(&self, log: &[Entry], cut: usize, subset: Subset) -> Image {
        // The pages are shared; only the table of them is copied.
        let mut image = self.image.clone();
        let mut rng = Rng::with_seed(match subset {
            Subset::Random { seed, .. } => seed,
            Subset::Stable | Subset::All => 0,
        });
        for entry in log[self.applied..cut].iter().filter(|entry| entry.device == self.device) {
            let pieces = match subset {
                Subset::Stable => break,
                Subset::All => vec![(0, entry.length())],
                Subset::Random { keep, sector, .. } => {
                    pieces(&mut rng, entry.offset, entry.length(), keep, sector)
                }
            };
            for (from, to) in pieces {
                match &entry.operation {
                    Operation::Write(data) => image.write(entry.offset + from as u64, &data[from..to]),
                    Operation::Zero(_) => image.zero(entry.offset + from as u64, (to - from) as u64),
                    Operation::Flush => {}
                }
            }
        }
        image
    }

    /// How many requests of this device are not stable at a cut that has been advanced to.
    pub(crate) fn unstable(&self, log: &[Entry], cut: usize) -> usize {
        log[self.applied..cut].iter().filter(|entry| entry.device == self.device).count()
    }
}

fn pieces(rng: &mut Rng, offset: u64, length: usize, keep: u32, sector: usize) -> Vec<(usize, usize)> {
    if rng.u32(0..1000) >= keep {
        return Vec::new();
    }
    // Nobody tears the superblocks in the first page: ext4 keeps two sectors there that it takes for one.
    if rng.u32(0..3) > 0 || length <= sector || offset < PAGE as u64 {
        return vec![(0, length)];
    }
    // A run of sectors from somewhere, or single ones.
    let sectors = length / sector;
    if rng.bool() {
        let from = rng.usize(..sectors);
        let to = rng.usize(from..sectors) + 1;
        return vec![(from * sector, to * sector)];
    }
    (0..sectors).filter(|_| rng.bool()).map(|at| (at * sector, (at + 1) * sector)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(device: usize, page: u64, byte: u8) -> Entry {
        let operation = Operation::Write(vec![byte; PAGE].into());
        Entry { device, offset: page * PAGE as u64, operation }
    }

    fn flush(device: usize) -> Entry {
        Entry { device, offset: 0, operation: Operation::Flush }
    }

    fn first_bytes(devices: &Devices, device: usize) -> Vec<u8> {
        (0..4)
            .map(|page| {
                let mut byte = [0];
                devices.read(device, page * PAGE as u64, &mut byte);
                byte[0]
            })
            .collect()
    }

    #[test]
    fn what_was_flushed_stays_and_of_the_rest_any_subset_may() {
        let log = vec![
            write(TRACKED, 0, 1),
            write(JOURNAL, 0, 9),
            flush(TRACKED),
            write(TRACKED, 1, 2),
            flush(JOURNAL),
            write(TRACKED, 2, 3),
        ];
        let devices = Devices::new([1 << 16, 1 << 16]);
        let mut stable = Stable::new(TRACKED, Image::default());
        let mut served = |cut: usize, subset| {
            stable.advance(&log, cut);
            devices.serve(TRACKED, stable.state(&log, cut, subset), false);
            first_bytes(&devices, TRACKED)
        };
        assert_eq!(served(2, Subset::Stable), [0, 0, 0, 0]);
        assert_eq!(served(2, Subset::All), [1, 0, 0, 0]);
        // The other device's flush is not ours.
        assert_eq!(served(6, Subset::Stable), [1, 0, 0, 0]);
        assert_eq!(served(6, Subset::All), [1, 2, 3, 0]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            seen.insert(served(6, Subset::Random { seed, keep: 500, sector: PAGE }));
        }
        let all = [[1, 0, 0, 0], [1, 2, 0, 0], [1, 0, 3, 0], [1, 2, 3, 0]];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), {
            let mut all = all.map(|state| state.to_vec()).to_vec();
            all.sort();
            all
        });
    }

    #[test]
    fn what_is_written_while_a_state_is_served_is_gone_with_it() {
        let devices = Devices::new([1 << 16, 1 << 16]);
        devices.write(TRACKED, 0, &[7; PAGE]);
        let [base, _] = devices.record();
        devices.write(TRACKED, 5, &[8; 10]);
        let log = devices.end_recording();
        assert_eq!(log.len(), 1);
        let mut stable = Stable::new(TRACKED, base);
        stable.advance(&log, 1);
        devices.serve(TRACKED, stable.state(&log, 1, Subset::All), false);
        let mut bytes = [0; 16];
        devices.read(TRACKED, 0, &mut bytes);
        assert_eq!(bytes, [7, 7, 7, 7, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7]);
        devices.write(TRACKED, 0, &[1; PAGE]);
        devices.zero(TRACKED, 4, 4);
        devices.read(TRACKED, 0, &mut bytes);
        assert_eq!(bytes, [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        devices.serve(TRACKED, stable.state(&log, 1, Subset::Stable), false);
        devices.read(TRACKED, 0, &mut bytes);
        assert_eq!(bytes, [7; 16]);
        assert_eq!(devices.position(), 0);
    }

    #[test]
    fn a_torn_write_arrives_in_whole_sectors() {
        let mut rng = Rng::with_seed(1);
        let mut torn = 0;
        for _ in 0..1000 {
            let found = pieces(&mut rng, 1 << 20, 8192, 1000, 512);
            assert!(
                found.iter().all(|(from, to)| from < to && from % 512 == 0 && to % 512 == 0 && *to <= 8192)
            );
            torn += u32::from(found != [(0, 8192)]);
            assert_eq!(pieces(&mut rng, 0, 8192, 1000, 512), [(0, 8192)]);
        }
        assert!((200..500).contains(&torn), "{torn}");
    }
}
