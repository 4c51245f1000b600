//! A run's records in order, and what can be wrong with them. Called by the host's tests on what
//! they read from a guest's disk, memory and console.

use std::collections::BTreeMap;

use crate::record::{RECORD_SIZE, Record, seed};

/// What is wrong with a sequence of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Records are missing.
    #[error("record {expected} is missing: {found} stands in its place")]
    Lost {
        /// The number that should be here.
        expected: u64,
        /// The number that is.
        found: u64,
    },
    /// A record is there twice, or out of its place.
    #[error("record {found} is there again where {expected} should be")]
    Repeated {
        /// The number that should be here.
        expected: u64,
        /// The number that is.
        found: u64,
    },
    /// A record's checksum does not fit to it and the one before: torn, altered, or of another fork.
    #[error("record {n}'s checksum does not fit to it and the record before")]
    Checksum {
        /// The record's number.
        n: u64,
    },
    /// A record's run is not that of the first one.
    #[error("record {n} belongs to the run {run:016x}")]
    Foreign {
        /// The record's number.
        n: u64,
        /// The run that it names.
        run: u64,
    },
    /// The clock went backwards.
    #[error("record {n} was written before the one in front of it")]
    Clock {
        /// The record's number.
        n: u64,
    },
    /// The bytes on the disk do not end with a whole record.
    #[error("{bytes} bytes of a record stand at the end of the file")]
    Torn {
        /// How many bytes are left over.
        bytes: usize,
    },
    /// The bytes at a record's place are none.
    #[error("there is no record at offset {offset} of the file")]
    Empty {
        /// The offset in bytes.
        offset: usize,
    },
    /// Two memory pages claim the same place in a run and neither is an older copy of the other.
    #[error("page {page} is there twice, with different records")]
    PageTwice {
        /// The page's number in its run.
        page: u32,
    },
}

/// Checks that `records` are numbers 1, 2, 3, … of one run, each with the right checksum.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(records: &[Record]) -> Result<(), Broken> {
    match records.first() {
        Some(first) => verify_from(1, seed(first.run), records),
        None => Ok(()),
    }
}

/// Checks that `records` are the numbers from `n` on of one run, when the record before the first
/// has the checksum `before`.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify_from(n: u64, before: u32, records: &[Record]) -> Result<(), Broken> {
    let (mut expected, mut before, mut stamp) = (n, before, 0);
    let run = records.first().map_or(0, |first| first.run);
    for record in records {
        let found = record.n;
        if record.run != run {
            return Err(Broken::Foreign {
                n: found,
                run: record.run,
            });
        }
        if found > expected {
            return Err(Broken::Lost { expected, found });
        }
        if found < expected {
            return Err(Broken::Repeated { expected, found });
        }
        if !record.follows(before) {
            return Err(Broken::Checksum { n: found });
        }
        if record.stamp < stamp {
            return Err(Broken::Clock { n: found });
        }
        (expected, before, stamp) = (expected + 1, record.crc, record.stamp);
    }
    Ok(())
}

/// How many records both histories begin with. Two forks of a guest have those up to their fork in
/// common; a history and a later reading of the same guest, all of the shorter one.
pub fn common_prefix(a: &[Record], b: &[Record]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The records of a disk file, all runs in the order in which they were written.
///
/// # Errors
/// [`Broken::Torn`] and [`Broken::Empty`]; checksums are for [`verify`].
pub fn parse_disk(file: &[u8]) -> Result<Vec<Record>, Broken> {
    let (whole, rest) = file.as_chunks::<RECORD_SIZE>();
    if !rest.is_empty() {
        return Err(Broken::Torn { bytes: rest.len() });
    }
    whole
        .iter()
        .enumerate()
        .map(|(i, bytes)| {
            Record::decode(bytes).ok_or(Broken::Empty {
                offset: i * RECORD_SIZE,
            })
        })
        .collect()
}

/// The records in what a console printed, in the order in which they were printed. A line that is
/// not complete (a reader that came late, or has not read to the end) is left out.
pub fn parse_console(text: &str) -> Vec<Record> {
    text.lines().filter_map(Record::from_line).collect()
}

/// The same records apart by run, each run in the order given. A guest that was started again has
/// more than one.
pub fn by_run(records: impl IntoIterator<Item = Record>) -> BTreeMap<u64, Vec<Record>> {
    let mut runs = BTreeMap::<u64, Vec<Record>>::new();
    for record in records {
        runs.entry(record.run).or_default().push(record);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn history(run: u64, stamps: &[u64]) -> Vec<Record> {
        let mut records = vec![Record::first(run, 1, 0)];
        for stamp in stamps {
            let last = records[records.len() - 1];
            records.push(last.next(last.stamp + stamp, *stamp as u32));
        }
        records
    }

    #[test]
    fn a_restarted_guest_has_two_runs_on_its_disk() {
        let (first, second) = (history(1, &[5; 3]), history(2, &[5; 2]));
        let file: Vec<u8> = first
            .iter()
            .chain(&second)
            .flat_map(Record::encode)
            .collect();
        let records = parse_disk(&file).unwrap();
        assert_eq!(verify(&records), Err(Broken::Foreign { n: 1, run: 2 }));
        let runs = by_run(records);
        assert_eq!(runs[&1], first);
        assert_eq!(runs[&2], second);
    }

    #[test]
    fn forks_share_their_past_and_differ_from_there_on() {
        let past = history(9, &[5; 10]);
        let last = past[past.len() - 1];
        let fork = |stamp| {
            let mut records = past.clone();
            records.push(last.next(stamp, 0));
            records
        };
        let (a, b) = (fork(100), fork(101));
        assert_eq!(verify(&a), Ok(()));
        assert_eq!(verify(&b), Ok(()));
        assert_eq!(common_prefix(&a, &b), past.len());
        // What came after in one fork does not fit behind what came after in the other.
        let mut mixed = a.clone();
        mixed.push(b[b.len() - 1].next(200, 0));
        assert_eq!(verify(&mixed), Err(Broken::Checksum { n: 13 }));
    }

    #[test]
    fn a_file_that_ends_in_the_middle_of_a_record_is_torn() {
        let file = history(3, &[])
            .iter()
            .flat_map(Record::encode)
            .collect::<Vec<_>>();
        assert_eq!(parse_disk(&file[..20]), Err(Broken::Torn { bytes: 20 }));
        assert_eq!(parse_disk(&[0; 32]), Err(Broken::Empty { offset: 0 }));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(run: u64, stamps in prop::collection::vec(0u64..1000, 0..50)) {
            let records = history(run, &stamps);
            prop_assert_eq!(verify(&records), Ok(()));
            let file: Vec<u8> = records.iter().flat_map(Record::encode).collect();
            prop_assert_eq!(&parse_disk(&file).unwrap(), &records);
            let text: String = records.iter().map(|r| format!("{}\r\n", r.to_line())).collect();
            prop_assert_eq!(&parse_console(&text), &records);
        }

        #[test]
        fn lost_repeated_and_swapped_records_are_told(
            stamps in prop::collection::vec(0u64..1000, 3..20), at in 0usize..3, kind in 0..3,
        ) {
            let mut records = history(4, &stamps);
            match kind {
                0 => drop(records.remove(at)),
                1 => records.insert(at, records[at]),
                _ => records.swap(at, at + 1),
            }
            prop_assert!(verify(&records).is_err());
        }
    }
}
