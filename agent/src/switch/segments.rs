//! Where frames go. Pure. A group is a segment; a member's address follows from its number, so there is nothing to learn, and nothing that a
//! guest could make believe.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::collections::BTreeMap;

/// The shortest frame: two addresses and a type.
const HEADER: usize = 14;

/// The ports of all segments: what a member is reached by.
#[derive(Debug)]
pub struct Segments<P>(BTreeMap<String, BTreeMap<u8, P>>);

impl<P> Default for Segments<P> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<P> Segments<P> {
    /// Has a member be reached by a port. Gives the one before.
    pub fn plug(&mut self, segment: &str, number: u8, port: P) -> Option<P> {
        let ports = self.0.entry(segment.to_owned()).or_default();
        ports.insert(number, port)
    }

    /// A member's port.
    pub fn get(&self, segment: &str, number: u8) -> Option<&P> {
        self.0.get(segment)?.get(&number)
    }

    /// Takes a member's port away.
    pub fn unplug(&mut self, segment: &str, number: u8) {
        if let Some(ports) = self.0.get_mut(segment) {
            ports.remove(&number);
            if ports.is_empty() {
                self.0.remove(segment);
            }
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who gets a frame of a member: the one that it is addressed to; where that is no member's address, all others of its segment.
    pub fn receivers<'a>(
        &'a self,
        segment: &str,
        from: u8,
        frame: &[u8],
    ) -> impl Iterator<Item = &'a P> + use<'a, P> {
        let to = (frame.len() >= HEADER)
            .then(|| frame.first_chunk::<6>().copied())
            .flatten();
        let only = to.and_then(guest::group::number_of);
        let ports = self.0.get(segment).filter(|_| to.is_some());
        ports
            .into_iter()
            .flatten()
            .filter(move |(number, _)| **number != from && only.is_none_or(|one| one == **number))
            .map(|(_, port)| port)
    }
}

#[cfg(test)]
mod tests {
    use guest::group::mac;

    use super::*;

    /// Two groups of three members each.
    fn segments() -> Segments<&'static str> {
        let mut segments = Segments::default();
        for (segment, ports) in [("a", ["a1", "a2", "a3"]), ("b", ["b1", "b2", "b3"])] {
            for (number, port) in (1..).zip(ports) {
                assert_eq!(segments.plug(segment, number, port), None);
            }
        }
        segments
    }

    fn frame(to: [u8; 6]) -> Vec<u8> {
        let mut frame = to.to_vec();
        frame.resize(60, 0);
        frame
    }

    fn sent(segments: &Segments<&'static str>, segment: &str, from: u8, frame: &[u8]) -> String {
        let receivers: Vec<_> = segments.receivers(segment, from, frame).copied().collect();
        receivers.join(" ")
    }

    #[test]
    fn a_frame_reaches_whom_it_is_for_and_only_in_its_own_group() {
        let segments = segments();
        assert_eq!(sent(&segments, "a", 1, &frame(mac(2))), "a2");
        assert_eq!(sent(&segments, "b", 3, &frame(mac(2))), "b2");
        assert_eq!(sent(&segments, "a", 1, &frame(mac(9))), "", "nobody has it");
        assert_eq!(sent(&segments, "a", 2, &frame(mac(2))), "", "its own");
        assert_eq!(sent(&segments, "c", 1, &frame([0xff; 6])), "", "no group");
    }

    #[test]
    fn what_is_for_all_or_for_somebody_unknown_reaches_all_others_of_the_group() {
        let segments = segments();
        let other = [0x02, 1, 2, 3, 4, 5];
        for to in [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], other] {
            assert_eq!(sent(&segments, "a", 2, &frame(to)), "a1 a3");
        }
    }

    #[test]
    fn what_is_no_frame_reaches_nobody() {
        let segments = segments();
        for length in 0..HEADER {
            assert_eq!(sent(&segments, "a", 1, &[0xff; HEADER][..length]), "");
        }
        assert_eq!(sent(&segments, "a", 1, &[0xff; HEADER]), "a2 a3");
    }

    #[test]
    fn who_has_gone_gets_nothing() {
        let mut segments = segments();
        segments.unplug("a", 2);
        assert_eq!(sent(&segments, "a", 1, &frame([0xff; 6])), "a3");
        assert_eq!(segments.get("a", 2), None);
        assert_eq!(segments.plug("a", 3, "new"), Some("a3"));
        for (segment, number) in [("a", 1), ("a", 3), ("b", 1), ("b", 2), ("b", 3)] {
            assert!(!segments.is_empty());
            segments.unplug(segment, number);
        }
        assert!(segments.is_empty());
    }
}
