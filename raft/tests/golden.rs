//! The stored forms that were released stay readable, and are written as they were.
//!
//! `tests/golden/v1` holds a record a line, in hexadecimal, after its name. What is there was released: a line that no
//! longer reads back means that the change needs a form of its own (`stored::v2`), not another fixture. While a form is
//! not released yet, or to add lines, run
//!
//! ```text
//! cargo test -p fp-raft --test golden -- --ignored write_the_golden_files
//! ```

// A panic here is a failure with a place.
#![allow(clippy::unwrap_used)]

mod samples;

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use raft::{
    codec,
    state::{Actor, Command, ObjectId, Proposal, VmId},
};

type Records = BTreeMap<String, Vec<u8>>;

const HINT: &str = "has the stored form changed? See the head of tests/golden.rs";

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/v1")
        .join(file)
}

fn read(file: &str) -> Records {
    let text = fs::read_to_string(path(file)).unwrap();
    let parse = |line: &str| {
        let (name, hex) = line.split_once(' ').unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (
            name.to_owned(),
            (0..hex.len()).step_by(2).map(byte).collect(),
        )
    };
    text.lines().map(parse).collect()
}

fn write(file: &str, records: &Records) {
    let mut text = String::new();
    for (name, record) in records {
        text.push_str(name);
        text.push(' ');
        for byte in record {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    fs::write(path(file), text).unwrap();
}

fn proposals() -> Records {
    let record = |(name, proposal)| (name, codec::encode_proposal(&proposal, 1));
    samples::proposals().into_iter().map(record).collect()
}

fn outcomes() -> Records {
    samples::outcomes()
        .into_iter()
        .map(|(name, outcome)| (name, codec::encode_outcome(&outcome)))
        .collect()
}

fn states() -> Records {
    [("full".to_owned(), codec::encode_state(&samples::state()))].into()
}

#[test]
fn proposals_are_read_as_they_were_written() {
    let golden = read("proposals.hex");
    for (name, proposal) in samples::proposals() {
        let record = golden
            .get(&name)
            .unwrap_or_else(|| panic!("no golden record of {name}: {HINT}"));
        assert_eq!(
            codec::decode_proposal(record).unwrap(),
            proposal,
            "{name}: {HINT}"
        );
    }
    assert_eq!(proposals(), golden, "{HINT}");
}

#[test]
fn outcomes_are_read_as_they_were_written() {
    let golden = read("outcomes.hex");
    for (name, outcome) in samples::outcomes() {
        let record = golden
            .get(&name)
            .unwrap_or_else(|| panic!("no golden record of {name}: {HINT}"));
        assert_eq!(
            codec::decode_outcome(record).unwrap(),
            outcome,
            "{name}: {HINT}"
        );
    }
    assert_eq!(outcomes(), golden, "{HINT}");
}

#[test]
fn states_are_read_as_they_were_written() {
    let golden = read("states.hex");
    assert_eq!(
        codec::decode_state(&golden["full"]).unwrap(),
        samples::state(),
        "{HINT}"
    );
    assert_eq!(states(), golden, "{HINT}");
}

#[test]
#[ignore = "writes the fixtures that the other tests compare with"]
fn write_the_golden_files() {
    write("proposals.hex", &proposals());
    write("outcomes.hex", &outcomes());
    write("states.hex", &states());
}

#[test]
fn what_is_cut_short_altered_or_from_the_future_is_refused() {
    let (_, proposal) = samples::proposals().into_iter().next().unwrap();
    let record = codec::encode_proposal(&proposal, 1);
    for end in 0..record.len() {
        assert!(
            codec::decode_proposal(&record[..end]).is_err(),
            "cut to {end} bytes"
        );
    }
    let longer: Vec<u8> = record.iter().copied().chain([0]).collect();
    assert!(codec::decode_proposal(&longer).is_err());
    let newer: Vec<u8> = [2].into_iter().chain(record[1..].iter().copied()).collect();
    assert!(matches!(
        codec::decode_proposal(&newer),
        Err(codec::CodecError::Version(2))
    ));
    assert!(matches!(
        codec::decode_proposal(&[]),
        Err(codec::CodecError::Empty)
    ));
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    // A request id of 2^60 bytes: version, `Some`, a varint of eight bytes.
    let mut record = vec![1, 1, 253];
    record.extend_from_slice(&(1u64 << 60).to_le_bytes());
    assert!(matches!(
        codec::decode_proposal(&record),
        Err(codec::CodecError::Malformed(_))
    ));
}

/// Whatever the log takes must be readable: a member that cannot read what was committed has to stop.
#[test]
fn the_largest_proposals_are_read() {
    let limit = usize::try_from(codec::PROPOSAL_LIMIT).unwrap();
    let one_long_text = Command::CancelOperation {
        operation: "x".repeat(limit - 20),
    };
    // The smallest items there are, so that the most of them fit: two bytes each.
    let objects = vec![ObjectId::Vm(VmId(1)); limit / 2 - 15];
    let many_small_items = Command::Purged { node: 1, objects };
    for command in [one_long_text, many_small_items] {
        let proposal = Proposal {
            request: None,
            by: Actor::cluster(),
            now: 1,
            command,
        };
        let record = codec::encode_proposal(&proposal, 1);
        assert!(
            (limit - 40..=limit).contains(&record.len()),
            "{} bytes",
            record.len()
        );
        assert_eq!(codec::decode_proposal(&record).unwrap(), proposal);
    }
}
