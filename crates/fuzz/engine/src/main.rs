//! libFuzzer on one target, which the environment names; or, with `HIGHWATER_FUZZ_PREPARE=DIR`, what it begins with for all of them.
#![no_main]

use std::sync::OnceLock;

use highwater_fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fuzz_target!(
    init: {
        if let Some(directory) = std::env::var_os("HIGHWATER_FUZZ_PREPARE") {
            highwater_fuzz::prepare(directory.as_ref()).expect("a directory to write to");
            std::process::exit(0);
        }
    },
    |bytes: &[u8]| {
        let target = TARGET.get_or_init(|| {
            let name = std::env::var("HIGHWATER_FUZZ_TARGET").unwrap_or_default();
            highwater_fuzz::target(&name).expect("HIGHWATER_FUZZ_TARGET is the name of a target")
        });
        (target.run)(bytes);
    }
);
