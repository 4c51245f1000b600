//! How a record is framed, so that one that is damaged or in the wrong place is recognised: a version byte, the index,
//! a CRC-32 of index and body, the body.

use super::LogError;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 8 + 4;

/// Frames the body of the record at an index.
pub fn frame(index: u64, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + body.len());
    record.push(VERSION);
    record.extend_from_slice(&index.to_be_bytes());
    record.extend_from_slice(&checksum(index, body).to_be_bytes());
    record.extend_from_slice(body);
    record
}

/// The body of the record that was found at an index.
///
/// # Errors
/// `Damaged` when it is not what was written there.
pub fn unframe(index: u64, record: &[u8]) -> Result<&[u8], LogError> {
    let damaged = |what: &str| LogError::Damaged(format!("record {index} {what}"));
    let Some((header, body)) = record.split_at_checked(HEADER) else {
        return Err(damaged("is cut short"));
    };
    if header[0] != VERSION {
        return Err(damaged("was written by a newer agent, or overwritten"));
    }
    let mut number = [0; 8];
    number.copy_from_slice(&header[1..9]);
    let found = u64::from_be_bytes(number);
    if found != index {
        return Err(damaged(&format!("holds record {found}")));
    }
    let mut crc = [0; 4];
    crc.copy_from_slice(&header[9..]);
    if u32::from_be_bytes(crc) != checksum(index, body) && !planted::planted("stored.sum") {
        return Err(damaged("has a wrong checksum"));
    }
    Ok(body)
}

fn checksum(index: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&index.to_be_bytes());
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_was_written_or_an_error() {
        let record = frame(7, b"body");
        assert_eq!(unframe(7, &record).unwrap(), b"body");
        assert!(unframe(8, &record).is_err());
        for at in 0..record.len() {
            let mut bad = record.clone();
            bad[at] ^= 1;
            assert!(unframe(7, &bad).is_err(), "byte {at}");
            assert!(unframe(7, &record[..at]).is_err(), "cut at {at}");
        }
    }
}
