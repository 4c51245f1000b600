//! Errors put into snapshots on purpose, to see that the checks find them: a stream with a part left out. The engine's code
//! has nothing of it; what is changed is the file that it wrote.

use anyhow::Context as _;

const PAGE: usize = 4096;
const ZERO: u64 = 0x02;
const SIZES: u64 = 0x04;
const CONTENT: u64 = 0x08;
const END: u64 = 0x10;
const SAME_BLOCK: u64 = 0x20;

/// A page in a stream's RAM section.
#[derive(Debug, Clone)]
struct Entry {
    block: String,
    offset: u64,
    bytes: std::ops::Range<usize>,
    names_block: bool,
}

/// Leaves a page of main memory out of a stream.
pub fn leave_out_page(stream: &mut Vec<u8>, page: u32) -> anyhow::Result<()> {
    leave_out(stream, |entry| {
        entry.block == "m" && entry.offset == u64::from(page) * PAGE as u64
    })
}

/// Leaves everything of a block out of a stream.
pub fn leave_out_block(stream: &mut Vec<u8>, block: &str) -> anyhow::Result<()> {
    leave_out(stream, |entry| entry.block == block)
}

/// The pages of main memory that a stream has.
pub fn pages(stream: &[u8]) -> anyhow::Result<Vec<u32>> {
    let main = entries(stream)?
        .into_iter()
        .filter(|entry| entry.block == "m");
    // The first one is there twice, and names the block.
    Ok(main
        .filter(|entry| !entry.names_block)
        .map(|entry| (entry.offset / PAGE as u64) as u32)
        .collect())
}

fn leave_out(stream: &mut Vec<u8>, which: impl Fn(&Entry) -> bool) -> anyhow::Result<()> {
    let all = entries(stream)?;
    let out: Vec<&Entry> = all.iter().filter(|entry| which(entry)).collect();
    anyhow::ensure!(!out.is_empty(), "the stream has no such page");
    // Those that follow a name need it.
    let rest_is_named = |named: &Entry| {
        let of_block = |list: &[&Entry]| list.iter().filter(|e| e.block == named.block).count();
        of_block(&out) == of_block(&all.iter().collect::<Vec<_>>())
    };
    anyhow::ensure!(
        out.iter()
            .all(|entry| !entry.names_block || rest_is_named(entry)),
        "other pages need the name of that one's block"
    );
    for entry in out.iter().rev() {
        stream.drain(entry.bytes.clone());
    }
    Ok(())
}

/// Walks a stream's RAM section.
fn entries(stream: &[u8]) -> anyhow::Result<Vec<Entry>> {
    let mut reader = Reader { stream, at: 8 };
    reader.expect(0x07)?;
    let machine = reader.number(4)? as usize;
    reader.take(machine)?;
    reader.expect(0x01)?;
    // Section id, "ram", instance and version.
    reader.take(4 + 4 + 4 + 4)?;
    let mut left = reader.number(8)? & !SIZES;
    while left > 0 {
        reader.name()?;
        left -= reader.number(8)?;
    }
    // End of the list, footer, and the head of the section's end.
    reader.take(8 + 5 + 5)?;
    let (mut entries, mut block) = (Vec::new(), String::new());
    loop {
        let start = reader.at;
        let head = reader.number(8)?;
        if head & END != 0 {
            return Ok(entries);
        }
        let names_block = head & SAME_BLOCK == 0;
        if names_block {
            block = reader.name()?;
        }
        reader.take(match head & (ZERO | CONTENT) {
            ZERO => 1,
            CONTENT => PAGE,
            other => anyhow::bail!("a page with flags {other:#x}"),
        })?;
        entries.push(Entry {
            block: block.clone(),
            offset: head & !(PAGE as u64 - 1),
            bytes: start..reader.at,
            names_block,
        });
    }
}

struct Reader<'a> {
    stream: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> anyhow::Result<&'a [u8]> {
        let bytes = self.stream.get(self.at..self.at + count);
        self.at += count;
        bytes.context("the stream is too short")
    }

    fn number(&mut self, bytes: usize) -> anyhow::Result<u64> {
        let bytes = self.take(bytes)?;
        Ok(bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn name(&mut self) -> anyhow::Result<String> {
        let length = self.number(1)? as usize;
        Ok(String::from_utf8(self.take(length)?.to_vec())?)
    }

    fn expect(&mut self, byte: u8) -> anyhow::Result<()> {
        let found = self.take(1)?[0];
        anyhow::ensure!(found == byte, "{found:#x} where {byte:#x} should be");
        Ok(())
    }
}
