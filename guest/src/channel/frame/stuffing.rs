//! Consistent Overhead Byte Stuffing: bytes without zeros, and back. By runs and not by bytes, as the crate does it: all that goes into a
//! guest and out of it passes here, four times, half of them in the guest, which may be an emulated one.

use bytes::{BufMut as _, Bytes, BytesMut};

/// The longest run of bytes that has no zero at its end.
pub(super) const RUN: usize = 254;

/// Appends the encoding of `parts`, one after the other.
pub(super) fn stuff(parts: &[&[u8]], out: &mut BytesMut) {
    // Where the length of the run goes that has begun; none has after one of the longest.
    let mut begun = Some(out.len());
    out.put_u8(0);
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let at = *begun.get_or_insert_with(|| {
                out.put_u8(0);
                out.len() - 1
            });
            let length = out.len() - at - 1;
            let most = rest.len().min(RUN - length);
            match memchr::memchr(0, &rest[..most]) {
                Some(zero) => {
                    out.put_slice(&rest[..zero]);
                    out[at] = (length + zero + 1) as u8;
                    begun = Some(out.len());
                    out.put_u8(0);
                    rest = &rest[zero + 1..];
                }
                None => {
                    out.put_slice(&rest[..most]);
                    rest = &rest[most..];
                    if length + most == RUN {
                        out[at] = RUN as u8 + 1;
                        begun = None;
                    }
                }
            }
        }
    }
    if let Some(at) = begun {
        out[at] = (out.len() - at) as u8;
    }
}

/// What was encoded so; `None` where it is the encoding of nothing.
pub(super) fn unstuff(encoded: &[u8]) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((code, after)) = rest.split_first() {
        let length = usize::from(*code).checked_sub(1)?;
        let (run, after) = after.split_at_checked(length)?;
        out.put_slice(run);
        if length < RUN && !after.is_empty() {
            out.put_u8(0);
        }
        rest = after;
    }
    Some(out.freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stuffed(parts: &[&[u8]]) -> BytesMut {
        let mut out = BytesMut::from(&b"before"[..]);
        stuff(parts, &mut out);
        out.split_off(6)
    }

    #[test]
    fn runs_of_every_length_are_as_another_has_them() {
        for length in [0usize, 1, 253, 254, 255, 507, 508, 509, 1016] {
            for zero in [None, Some(0), Some(length / 2), length.checked_sub(1)] {
                let mut bytes = vec![7; length];
                if let Some(byte) = zero.and_then(|at| bytes.get_mut(at)) {
                    *byte = 0;
                }
                let ours = stuffed(&[&bytes]);
                assert_eq!(ours, cobs::encode_vec(&bytes), "{length} {zero:?}");
                assert_eq!(unstuff(&ours).unwrap(), bytes);
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_what_another_makes_of_it(
            bytes in prop::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(0)], 0..1200),
            cut in any::<prop::sample::Index>(),
        ) {
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            let ours = stuffed(&[head, tail]);
            prop_assert_eq!(&ours[..], &cobs::encode_vec(&bytes)[..]);
            prop_assert!(!ours.contains(&0));
            prop_assert!(ours.len() <= bytes.len() + bytes.len() / RUN + 1);
            prop_assert_eq!(unstuff(&ours).unwrap(), bytes);
        }

        #[test]
        fn anything_is_decoded_or_refused(bytes in prop::collection::vec(1u8.., 1..600)) {
            let theirs = cobs::decode_vec(&bytes).ok();
            prop_assert_eq!(unstuff(&bytes).map(Vec::from), theirs);
        }
    }
}
