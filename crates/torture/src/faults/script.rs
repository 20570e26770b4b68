//! A few operations of every kind, with contents that are new in each round.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, XattrFlags};

use crate::mapping::Mapping;

/// Makes what the rounds work on.
pub(crate) fn prepare(tree: &Path) -> io::Result<()> {
    for directory in ["a", "b/deep", "c", "d/e", "quiet"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    for file in [
        "a/file",
        "b/deep/file",
        "b/held",
        "b/mapped",
        "c/log",
        "c/x",
        "c/y",
        "d/e/file",
        "top",
        "quiet/file",
    ] {
        fs::write(tree.join(file), [b'0'; 4096])?;
    }
    Ok(())
}

/// Changes what no round touches, and so no intent covers: for what happens while nobody looks.
pub(crate) fn in_the_gap(tree: &Path, round: u64) -> io::Result<()> {
    fs::write(tree.join("quiet/file"), format!("gap {round}"))
}

/// What a program keeps open: it goes on writing when the tracker is dead.
pub(crate) struct Held {
    file: Option<File>,
    mapping: Option<Mapping>,
}

impl Held {
    /// Opens a file for writing, and maps another one.
    pub(crate) fn open(tree: &Path) -> Self {
        let open = |name: &str| OpenOptions::new().read(true).write(true).open(tree.join(name));
        Self {
            file: open("b/held").ok(),
            mapping: open("b/mapped").and_then(|file| Mapping::of(&file, 4096)).ok(),
        }
    }

    /// Writes through both; errors are as good, nothing has changed then.
    pub(crate) fn write(&mut self, round: u64, what: &str) {
        let text = format!("{what} {round};");
        if let Some(file) = &self.file {
            let _ = file.write_all_at(text.as_bytes(), 0);
        }
        if let Some(mapping) = &mut self.mapping {
            mapping.store(0, text.as_bytes());
        }
    }
}

/// One round. Ends early when the tracker is gone; other errors are those of a tree in which a round before was cut short.
pub(crate) fn run(tree: &Path, round: u64) {
    let at = |path: &str| tree.join(path);
    let text = format!("round {round} ");
    let new = format!("a/new-{round}");
    let old = format!("a/new-{}", round.saturating_sub(1));
    let flip = |one: &str, other: &str| {
        let (one, other) = (at(one), at(other));
        if one.exists() { fs::rename(one, other) } else { fs::rename(other, one) }
    };
    let operations: [&dyn Fn() -> io::Result<()>; 16] = [
        &|| fs::create_dir(at(&new)),
        &|| fs::write(at(&format!("{new}/f")), &text),
        &|| File::create(at("b/deep/file"))?.write_all(text.repeat(400).as_bytes()),
        &|| OpenOptions::new().append(true).open(at("c/log"))?.write_all(text.as_bytes()),
        &|| flip("a/file", "c/file"),
        &|| flip("d/e", "b/e"),
        &|| fs::write(at("d/e/file"), &text).or_else(|_| fs::write(at("b/e/file"), &text)),
        &|| fs::hard_link(at("c/log"), at(&format!("{new}/link"))),
        &|| {
            fs::set_permissions(
                at("top"),
                fs::Permissions::from_mode(0o600 + u32::try_from(round % 8).unwrap_or(0)),
            )
        },
        &|| Ok(rustix::fs::setxattr(at("top"), "user.round", text.as_bytes(), XattrFlags::empty())?),
        &|| OpenOptions::new().write(true).open(at("top"))?.set_len(round % 5000),
        &|| Ok(rustix::fs::renameat_with(CWD, at("c/x"), CWD, at("c/y"), RenameFlags::EXCHANGE)?),
        &|| fs::write(at("c/x"), text.repeat(2)),
        &|| unnamed(&at("c"), &at(&format!("c/linked-{}", round % 3)), text.as_bytes()),
        &|| symlink(&text, at(&format!("{new}/symlink"))),
        &|| fs::remove_dir_all(at(&old)),
    ];
    for operation in operations {
        if let Err(error) = operation()
            && matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
        {
            return;
        }
    }
}

/// A file that gets its name last.
fn unnamed(directory: &Path, name: &Path, data: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    file.write_all(data)?;
    let _ = fs::remove_file(name);
    let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok(rustix::fs::linkat(CWD, link, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}
