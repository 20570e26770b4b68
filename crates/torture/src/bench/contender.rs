//! What is measured side by side: the plain filesystem, Highwater on it, and other stacked filesystems on it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::BenchArgs;
use crate::cleanup::Guard;
use crate::product::{Product, Tracking};
use crate::scratch::{Scratch, run, unmount_all};

/// One of them, mounted.
pub(super) struct Contender {
    pub(super) name: String,
    /// Where to work.
    pub(super) dir: PathBuf,
    _mount: Option<Guard>,
    tracking: Option<(Product, Tracking)>,
}

impl Contender {
    /// All that this machine has; what is missing is said on stderr.
    pub(super) fn all(arguments: &BenchArgs, scratch: &Scratch) -> Result<Vec<Self>> {
        let plain = scratch.tree.join("plain");
        fs::create_dir_all(&plain)?;
        let mut all = vec![Self { name: "plain".to_owned(), dir: plain, _mount: None, tracking: None }];
        for durability in ["strict", "relaxed"] {
            all.push(Self::highwater(arguments, scratch, durability)?);
        }
        for peer in ["bindfs", "mergerfs"] {
            match Self::peer(scratch, peer) {
                Ok(contender) => all.push(contender),
                Err(error) => eprintln!("bench: without {peer}: {error:#}"),
            }
        }
        Ok(all)
    }

    fn highwater(arguments: &BenchArgs, scratch: &Scratch, durability: &str) -> Result<Self> {
        let dir = scratch.tree.join(durability);
        fs::create_dir_all(&dir)?;
        let mut product = arguments.product.clone();
        product.track_args.extend(["--source=fuse".to_owned(), format!("--durability={durability}")]);
        fs::create_dir_all(&scratch.state)?;
        let state = scratch.state.join(durability);
        let product = Product::new(&product, &dir, &state, &scratch.evidence)?;
        let (tracking, _) = product.track().with_context(|| format!("highwater, {durability}"))?;
        let name = format!("highwater {durability}");
        Ok(Self { name, dir, _mount: None, tracking: Some((product, tracking)) })
    }

    fn peer(scratch: &Scratch, program: &str) -> Result<Self> {
        let source = scratch.tree.join(format!("{program}-source"));
        let dir = scratch.tree.join(program);
        fs::create_dir_all(&source)?;
        fs::create_dir_all(&dir)?;
        let guard = Guard::new({
            let dir = dir.clone();
            move || unmount_all(&dir)
        });
        // As a user gets them: the defaults of the package. Both are FUSE servers in the background after this.
        run(program, &["-o", "allow_other", &source.to_string_lossy(), &dir.to_string_lossy()])?;
        Ok(Self { name: program.to_owned(), dir, _mount: Some(guard), tracking: None })
    }

    /// A clean end.
    pub(super) fn stop(self) -> Result<()> {
        match self.tracking {
            Some((product, tracking)) => product.stop(tracking),
            None => Ok(()),
        }
    }
}
