//! A fuzzer's bytes, taken for numbers and choices. What is missing at their end is 0.

use arbitrary::Unstructured;

/// What is left of the bytes.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub fn u32(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// A number below `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end.max(1)
    }

    /// A length of at most 64 KiB, most of them short.
    pub fn length(&mut self) -> usize {
        let (scale, number) = (self.u8(), usize::from(self.u8()));
        match scale % 16 {
            0..=11 => number,
            12..=14 => number << 5,
            // So that the longest is exactly that.
            _ => (number + 1) << 8,
        }
    }

    /// So many bytes, or all that are left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let count = count.min(self.0.len());
        self.0.bytes(count).unwrap_or_default()
    }
}
