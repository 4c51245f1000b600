//! Any memory, and any state of devices that QEMU may have written: a stream holds each page once, with what was read last, and all
//! of it is found again by a reader that is as simple as QEMU's format allows. QEMU itself is what reads streams; what reads here was
//! written from its sources.

use std::collections::BTreeMap;

use qemu::{
    stream::{Block, Pages, assemble},
    sys::PAGE,
};

use crate::input::Input;

/// Magic and version.
const HEADER: &[u8] = b"QEVM\0\0\0\x03";

/// The most pages of main memory.
const MOST: u32 = 48;

type Found = BTreeMap<(String, u64), Vec<u8>>;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (mut pages, mut expected) = (Pages::default(), Found::new());
    for _ in 0..input.below(6) {
        let begin = u32::from(input.u8()) % MOST;
        let end = (begin + u32::from(input.u8() % 8)).min(MOST);
        if input.u8().is_multiple_of(4) {
            pages.remove(begin);
            expected.remove(&("m".to_owned(), place(begin)));
            continue;
        }
        let run = begin..end;
        for (page, bytes) in pages.places_for(std::slice::from_ref(&run)) {
            content(&mut input, bytes);
            expected.insert(("m".to_owned(), place(page)), bytes.to_vec());
        }
    }
    let mut rom = vec![0; (1 + input.below(4)) * PAGE];
    for (number, page) in rom.chunks_mut(PAGE).enumerate() {
        content(&mut input, page);
        expected.insert(("rom".to_owned(), place(number as u32)), page.to_vec());
    }
    let main = Block {
        name: "m".to_owned(),
        used: place(MOST),
    };
    let other = Block {
        name: "rom".to_owned(),
        used: rom.len() as u64,
    };
    let mut devices = match input.u8() % 2 {
        0 => HEADER.to_vec(),
        _ => Vec::new(),
    };
    devices.extend_from_slice(input.bytes(usize::MAX));
    let stream = match assemble("microvm", &main, &pages, &[(other, rom)], &devices) {
        Ok(stream) => stream,
        Err(_) => return assert!(!devices.starts_with(HEADER), "QEMU's own state is refused"),
    };
    let whole: Vec<u8> = stream
        .parts()
        .iter()
        .flat_map(|part| part.to_vec())
        .collect();
    assert_eq!(whole.len() as u64, stream.len());
    let (found, rest) = read(&whole);
    for (place, page) in &expected {
        assert!(
            found.get(place) == Some(page),
            "{place:?} is not what was read"
        );
    }
    assert_eq!(
        found.len(),
        expected.len(),
        "there are pages that nobody read"
    );
    // The state of the devices, and a description of nothing.
    assert_eq!(rest, [&devices[HEADER.len()..], &[6, 0, 0, 0, 0]].concat());
}

fn place(page: u32) -> u64 {
    u64::from(page) * PAGE as u64
}

/// Nothing but zeros, a byte somewhere, or the same everywhere.
fn content(input: &mut Input<'_>, page: &mut [u8]) {
    page.fill(0);
    match input.u8() % 4 {
        0 => {}
        1 => page.fill(input.u8()),
        _ => page[input.below(256) * 16 + 15] = input.u8(),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> u64 {
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        self.take(bytes).iter().fold(0, add)
    }

    fn name(&mut self) -> String {
        let length = self.number(1) as usize;
        String::from_utf8_lossy(self.take(length)).into_owned()
    }

    fn expect(&mut self, bytes: &[u8]) {
        assert_eq!(self.take(bytes.len()), bytes);
    }
}

fn read(stream: &[u8]) -> (Found, Vec<u8>) {
    let mut stream = Reader(stream);
    stream.expect(HEADER);
    stream.expect(b"\x07\0\0\0\x07microvm");
    stream.expect(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
    let mut left = stream.number(8);
    assert_eq!(left & 0xfff, 4, "the sizes of memory");
    left &= !4;
    while left > 0 {
        stream.name();
        left -= stream.number(8);
    }
    stream.expect(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01\x03\0\0\0\x01");
    let (mut found, mut block) = (Found::new(), String::new());
    loop {
        let head = stream.number(8);
        if head == 0x10 {
            break;
        }
        if head & 0x20 == 0 {
            block = stream.name();
        }
        let page = match head & 0xa {
            8 => stream.take(PAGE).to_vec(),
            2 => vec![stream.number(1) as u8; PAGE],
            flags => panic!("flags {flags:x}"),
        };
        found.insert((block.clone(), head & !0xfff), page);
    }
    stream.expect(b"\x7e\0\0\0\x01");
    (found, stream.0.to_vec())
}
