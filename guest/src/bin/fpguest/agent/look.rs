//! How the guest is, as it sees itself.

use std::{fs, io, net::Ipv4Addr};

use fp_guest::channel::message::Looks;
use rustix::time::{ClockId, clock_gettime};

/// Looks.
///
/// # Errors
/// The kernel's files are not there.
pub fn look() -> io::Result<Looks> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let now = clock_gettime(ClockId::Realtime);
    Ok(Looks {
        memory_total: field(&memory, "MemTotal:"),
        memory_available: field(&memory, "MemAvailable:"),
        addresses: addresses(&fs::read_to_string("/proc/net/fib_trie").unwrap_or_default()),
        hostname: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        uptime_s: clock_gettime(ClockId::Boottime).tv_sec.unsigned_abs(),
        clock_ns: now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs(),
    })
}

/// A field of `/proc/meminfo`, in bytes; 0 when it is not there.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

/// The host's own addresses, from the kernel's list of routes: those that are its own are marked so.
fn addresses(trie: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut last = None;
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = last.filter(|address| !address.is_loopback())
        {
            let address = address.to_string();
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_its_own_are_found() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.2.0\n        /24 link UNICAST\n     |-- 10.0.2.15\n        \
                    /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 10.0.2.15\n        /32 host LOCAL\n";
        assert_eq!(addresses(trie), ["10.0.2.15"]);
    }

    #[test]
    fn memory_is_told_in_bytes() {
        assert_eq!(
            field("MemTotal:   2048 kB\nMemFree: 1 kB\n", "MemTotal:"),
            2 << 20
        );
        assert_eq!(field("", "MemTotal:"), 0);
    }

    #[test]
    fn this_host_is_seen() {
        let looks = look().unwrap();
        assert!(looks.memory_total > looks.memory_available && looks.memory_available > 0);
    }
}
