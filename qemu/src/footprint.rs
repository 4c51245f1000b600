//! The memory that one process takes of the host: what is its own, what it shares, and what merging saved.
//!
//! From counters that the kernel keeps anyway: asking costs microseconds, however much is mapped.

use std::{fs, io};

use crate::sys::PAGE;

/// What the kernel keeps for each page that it looks at, bytes (`struct ksm_rmap_item`).
const SCAN_ITEM: u64 = 64;

/// A process's memory, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Nobody else's: what would be free without it.
    pub private: u64,
    /// Mapped from files that others map as well: a base's pages, programs and libraries.
    pub shared: u64,
    /// Its pages that the kernel merged with equal ones.
    pub merged: u64,
    /// What the kernel keeps to know them and to find more.
    pub merge_cost: u64,
}

/// Looks at a process. Fails with `NotFound` (or `ESRCH`) when it is gone.
pub fn of(pid: u32) -> io::Result<Footprint> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    // Kernels before 6.1 have none, nor does one that was built without merging.
    let ksm = match fs::read_to_string(format!("/proc/{pid}/ksm_stat")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    Ok(parse(&status, &ksm))
}

fn parse(status: &str, ksm: &str) -> Footprint {
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        number(line) << 10
    };
    let of_ksm = |name: &str| number(ksm.lines().find_map(|line| line.strip_prefix(name)));
    let merged = of_ksm("ksm_merging_pages ") * PAGE as u64;
    let zeros = of_ksm("ksm_zero_pages ") * PAGE as u64;
    Footprint {
        // Pages of zeros that were merged are nobody's any more.
        private: kib("RssAnon:").saturating_sub(merged),
        shared: kib("RssFile:") + kib("RssShmem:"),
        merged: merged + zeros,
        merge_cost: of_ksm("ksm_rmap_items ") * SCAN_ITEM,
    }
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let status = "Name:\tq\nRssAnon:\t   100 kB\nRssFile:\t    20 kB\nRssShmem:\t     4 kB\n";
        let ksm =
            "ksm_rmap_items 20\nksm_zero_pages 0\nksm_merging_pages 5\nksm_process_profit 19200\n";
        assert_eq!(
            parse(status, ksm),
            Footprint {
                private: 80 << 10,
                shared: 24 << 10,
                merged: 20 << 10,
                merge_cost: 1280,
            }
        );
        assert_eq!(parse(status, "").private, 100 << 10);
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        let own = of(std::process::id()).unwrap();
        assert!(own.private > 1 << 16 && own.shared > 1 << 16, "{own:?}");
        let gone = of(u32::MAX >> 1).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
