//! Which intents an operation asks for, and when (docs/protocol.md, "What is durable when"). Needs root: it mounts.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs;

use highwater_tracker::FileHandle;
use support::{Fixture, Said, both};

fn handle_of(fx: &Fixture, path: &str) -> FileHandle {
    let source = fx.stacked().source();
    let mut handle = fx.stacked().root_handle().clone();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let directory = source.open_directory(&handle).unwrap().unwrap();
        handle = source.handle_at(&directory, name.as_bytes()).unwrap().unwrap().0;
    }
    handle
}

/// After a crash it may be back, under the name of another one that a consumer has copied.
#[test]
fn a_directory_that_loses_its_name_has_an_intent_of_its_own() {
    both(|fx| {
        for name in ["removed", "replaced", "n"] {
            fs::create_dir(fx.path(name)).unwrap();
        }
        let (removed, replaced) = (handle_of(fx, "removed"), handle_of(fx, "replaced"));
        fx.recorder.take();
        let intent_comes_first = |object: FileHandle| {
            let said = fx.recorder.take();
            let intent = said.iter().position(|said| *said == Said::Directory(object.clone()));
            let record = said.iter().position(|said| matches!(said, Said::Record(_)));
            assert!(intent.is_some() && intent < record, "{said:?}");
        };
        fs::remove_dir(fx.path("removed")).unwrap();
        intent_comes_first(removed);
        fs::rename(fx.path("n"), fx.path("replaced")).unwrap();
        intent_comes_first(replaced);
    });
}

/// A program that opens it meanwhile covers what is known as its name, which is the old one until the record.
#[test]
fn what_gets_another_name_renews_its_intents_after_the_record() {
    both(|fx| {
        fs::write(fx.path("f"), "").unwrap();
        fs::create_dir(fx.path("d")).unwrap();
        let (f, d) = (handle_of(fx, "f"), handle_of(fx, "d"));
        fx.recorder.wait_until("the file is closed", |said, _| said.contains(&Said::Closed(f.clone())));
        fx.recorder.take();
        let after_the_record = |wanted: Said| {
            let said = fx.recorder.take();
            let record = said.iter().position(|said| matches!(said, Said::Record(_))).unwrap();
            assert!(said[record..].contains(&wanted), "{said:?}");
        };
        fs::rename(fx.path("f"), fx.path("d/f")).unwrap();
        after_the_record(Said::Directory(d));
        fs::hard_link(fx.path("d/f"), fx.path("g")).unwrap();
        after_the_record(Said::Object(f));
    });
}
