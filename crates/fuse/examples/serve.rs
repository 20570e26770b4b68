//! Mounts a directory over itself without a tracker, until a line is read: for measuring the filesystem alone.
//!
//! `serve DIR [server] [shared-device] [threads=N]`

#[path = "../tests/support/recorder.rs"]
#[allow(dead_code, unreachable_pub)]
mod recorder;

use highwater_fuse::{Covered, Options, Stacked};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("usage: serve DIR [server] [shared-device] [threads=N]");
    let mut options = Options::default();
    for argument in arguments {
        match argument.as_str() {
            "server" => options.passthrough = false,
            "shared-device" => options.clone_device = false,
            other => {
                if let Some(threads) = other.strip_prefix("threads=") {
                    options.threads = threads.parse().expect("a number of threads");
                }
            }
        }
    }
    let covered = Covered::open(directory.as_ref()).expect("the directory can be opened");
    let stacked = Stacked::mount_with(covered, Box::new(recorder::Recorder::quiet()), options)
        .expect("the directory can be covered");
    println!("{:?}", stacked.report());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("standard input can be read");
    println!("{} nodes, passthrough {}", stacked.nodes(), stacked.is_passthrough());
    stacked.unmount().expect("nobody uses the directory");
}
