//! The committed inputs, as the fuzzer gives them to the targets. They reach all that it had reached when they were chosen; see
//! `deploy/fuzz.sh --renew`.

use std::{fs, path::Path};

fn bytes(line: &str) -> Vec<u8> {
    let digits: Vec<u32> = line.chars().filter_map(|c| c.to_digit(16)).collect();
    let pairs = digits.chunks(2);
    pairs.map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

#[test]
fn every_target_takes_its_corpus() {
    for (name, run) in fuzz::TARGETS {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpus/{name}.hex"));
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.is_empty(), "{name} has no inputs");
        for line in text.lines() {
            // Shown when it fails.
            println!("{name}: {line}");
            run(&bytes(line));
        }
    }
}
