//! Loading BPF objects, fitted to the running kernel.
//!
//! What the kernel says of its types is megabytes, and takes longer to read than all the programs to load. So it is read once for
//! all that is loaded together, and not kept.

use std::sync::{Arc, Weak};

use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader};
use parking_lot::Mutex;

/// The types of the running kernel.
pub(crate) struct Loader {
    // The loader has types of its own, which cannot be reached.
    loader: Mutex<EbpfLoader<'static>>,
    types: Btf,
}

impl Loader {
    /// The one that somebody holds, or else a new one.
    ///
    /// # Errors
    /// If the kernel does not tell its types (`CONFIG_DEBUG_INFO_BTF`).
    pub(crate) fn shared() -> Result<Arc<Self>, BtfError> {
        static HELD: Mutex<Weak<Loader>> = Mutex::new(Weak::new());
        let mut held = HELD.lock();
        if let Some(loader) = held.upgrade() {
            return Ok(loader);
        }
        let (types, loader) = std::thread::scope(|scope| {
            let types = scope.spawn(Btf::from_sys_fs);
            let loader = EbpfLoader::new();
            (types.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loader)
        });
        let loader = Arc::new(Self { loader: Mutex::new(loader), types: types? });
        *held = Arc::downgrade(&loader);
        Ok(loader)
    }

    /// Fits an object to the kernel and makes its maps. Its programs are to be loaded with [`Loader::types`].
    pub(crate) fn load(&self, object: &[u8]) -> Result<Ebpf, EbpfError> {
        self.loader.lock().load(object)
    }

    pub(crate) fn types(&self) -> &Btf {
        &self.types
    }
}
