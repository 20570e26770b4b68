//! Programs that change files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Two programs that create, write, rename and delete one file each, over and over.
pub(super) struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    operations: AtomicU64,
}

impl Shared {
    // ORDERING: a flag and a counter that guard nothing; joining the threads orders what they did.
    fn is_ended(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    fn count(&self, operations: u64) {
        // ORDERING: as above.
        self.operations.fetch_add(operations, Ordering::Relaxed);
    }
}

impl Writers {
    pub(super) fn start(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let shared = Arc::<Shared>::default();
        let threads = (0..2).map(|number| {
            let (shared, directory) = (Arc::clone(&shared), directory.to_owned());
            std::thread::spawn(move || {
                let (one, other) =
                    (directory.join(format!("a{number}")), directory.join(format!("b{number}")));
                while !shared.is_ended() {
                    let round = || -> io::Result<()> {
                        fs::write(&one, "x")?;
                        fs::rename(&one, &other)?;
                        fs::remove_file(&other)
                    };
                    if round().is_err() {
                        return;
                    }
                    shared.count(4);
                }
            })
        });
        let threads = threads.collect();
        Ok(Self { shared, threads })
    }

    pub(super) fn operations(&self) -> u64 {
        // ORDERING: see `Shared`.
        self.shared.operations.load(Ordering::Relaxed)
    }

    pub(super) fn stop(self) {
        // ORDERING: see `Shared`.
        self.shared.end.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // It ends at the first error, and does not panic.
            let _ = thread.join();
        }
    }
}

/// Programs that do all sorts of things in the same few directories, each repeatable from its seed.
pub(super) struct Workload(Writers);

impl Workload {
    pub(super) fn start(tree: &Path, programs: u64, seed: u64) -> Self {
        let shared = Arc::<Shared>::default();
        let threads = (0..programs).map(|number| {
            let (shared, tree) = (Arc::clone(&shared), tree.to_owned());
            let mut program = Program { tree, random: (seed << 32) + number * 7919 + 1 };
            std::thread::spawn(move || {
                while !shared.is_ended() {
                    match program.step() {
                        // Another program was faster.
                        Ok(()) => shared.count(1),
                        Err(error)
                            if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) =>
                        {
                            return;
                        }
                        Err(_) => {}
                    }
                }
            })
        });
        let threads = threads.collect();
        Self(Writers { shared, threads })
    }

    /// Waits until the programs end by themselves, because the tree is closed.
    pub(super) fn wait(self) -> u64 {
        let Writers { shared, threads } = self.0;
        for thread in threads {
            // It does not panic.
            let _ = thread.join();
        }
        // ORDERING: see `Shared`.
        shared.operations.load(Ordering::Relaxed)
    }

    pub(super) fn stop(self) -> u64 {
        // ORDERING: see `Shared`.
        self.0.shared.end.store(true, Ordering::Relaxed);
        self.wait()
    }
}

struct Program {
    tree: PathBuf,
    random: u64,
}

impl Program {
    /// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2014.
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn directory(&mut self) -> PathBuf {
        let (outer, inner) = (self.below(6), self.below(4));
        let outer = self.tree.join(format!("work-{outer}"));
        if inner == 0 { outer } else { outer.join(format!("part-{inner}")) }
    }

    fn file(&mut self) -> PathBuf {
        let number = self.below(12);
        self.directory().join(format!("f{number}"))
    }

    fn step(&mut self) -> io::Result<()> {
        match self.below(16) {
            0..=3 => {
                let (file, size) = (self.file(), self.below(20_000));
                let byte = b'a' + u8::try_from(self.below(26)).unwrap_or(0);
                fs::write(file, vec![byte; usize::try_from(size).unwrap_or(0)])
            }
            4..=6 => OpenOptions::new().append(true).open(self.file())?.write_all(b"appended\n"),
            7 => OpenOptions::new().write(true).open(self.file())?.set_len(100),
            8 | 9 => fs::rename(self.file(), self.file()),
            10 => fs::remove_file(self.file()),
            11 | 12 => fs::create_dir_all(self.directory()),
            13 => fs::rename(self.directory(), self.directory()),
            14 => match self.below(12) {
                0 => fs::remove_dir_all(self.directory()),
                _ => fs::set_permissions(
                    self.file(),
                    fs::Permissions::from_mode(0o600 + 0o11 * (u32::try_from(self.below(5)).unwrap_or(0))),
                ),
            },
            _ => match self.below(2) {
                0 => fs::hard_link(self.file(), self.file()),
                _ => symlink("somewhere", self.file()),
            },
        }
    }
}
