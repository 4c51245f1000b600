//! The engine with the targets: libFuzzer's own options, and which target in `FP_FUZZ`. `deploy/fuzz.sh` calls it.

#![no_main]

use std::sync::OnceLock;

use fuzz::TARGETS;

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

fn choose() {
    let name = std::env::var("FP_FUZZ").unwrap_or_default();
    let Some((_, run)) = TARGETS.into_iter().find(|(target, _)| *target == name) else {
        let known = TARGETS.map(|(target, _)| target).join(" ");
        eprintln!("FP_FUZZ names no target, which are: {known}");
        std::process::exit(2);
    };
    CHOSEN.get_or_init(|| run);
}

libfuzzer_sys::fuzz_target!(init: choose(), |bytes: &[u8]| {
    if let Some(run) = CHOSEN.get() {
        run(bytes);
    }
});
