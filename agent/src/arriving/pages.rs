//! Which pages of a file are here, and who waits for which. Pure: the page server answers the kernel by it, the agent fetches by it.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::ops::Range;

use qemu::{page_set::PageSet, sys::PAGE};

/// A page, as file offsets count.
const PAGE_BYTES: u64 = PAGE as u64;

/// The pages of a file that are here.
#[derive(Debug, Default)]
pub struct Here {
    size: u64,
    pages: PageSet,
}

impl Here {
    /// None of a file's, of `size` bytes.
    pub fn none(size: u64) -> Self {
        Self {
            size,
            pages: PageSet::default(),
        }
    }

    /// The file's length, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Notes that bytes are here. Pages count once all of their bytes have come together.
    pub fn add(&mut self, bytes: Range<u64>) {
        let from = bytes.start.div_ceil(PAGE_BYTES);
        let to = match bytes.end >= self.size {
            true => self.size.div_ceil(PAGE_BYTES),
            false => bytes.end / PAGE_BYTES,
        };
        if from < to {
            self.pages
                .extend(std::slice::from_ref(&(from as u32..to as u32)));
        }
    }

    /// What is not here of these bytes, in whole pages, ascending.
    pub fn lacking(&self, bytes: Range<u64>) -> Vec<Range<u64>> {
        let end = bytes.end.min(self.size);
        if bytes.start >= end {
            return Vec::new();
        }
        let (from, to) = (bytes.start / PAGE_BYTES, end.div_ceil(PAGE_BYTES));
        let mut lacking: Vec<Range<u64>> = Vec::new();
        for page in (from..to).filter(|page| !self.pages.contains(*page as u32)) {
            let (start, end) = (page * PAGE_BYTES, self.size.min((page + 1) * PAGE_BYTES));
            match lacking.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => lacking.push(start..end),
            }
        }
        lacking
    }

    /// What is not here.
    pub fn all_lacking(&self) -> Vec<Range<u64>> {
        self.lacking(0..self.size)
    }
}

/// Whether a file comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It does.
    Coming,
    /// It is here.
    Whole,
    /// The rest of it will not.
    GivenUp,
}

/// A file that is read while it comes, by readers of kind `R`.
#[derive(Debug)]
pub struct Pages<R> {
    here: Here,
    stage: Stage,
    waiting: Vec<(Range<u64>, R)>,
}

/// What becomes of a reader.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<R> {
    /// It can read these bytes.
    Read(Range<u64>, R),
    /// They will not come.
    Fail(R),
    /// It waits, for these bytes first of all.
    Wait(Vec<Range<u64>>),
}

impl<R> Pages<R> {
    /// Of a file of which nothing is here.
    pub fn none(size: u64) -> Self {
        Self {
            here: Here::none(size),
            stage: Stage::Coming,
            waiting: Vec::new(),
        }
    }

    /// Whether it comes.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Somebody reads these bytes; what lies behind the file's end is left out.
    pub fn read(&mut self, bytes: Range<u64>, reader: R) -> Turn<R> {
        let size = self.here.size;
        let bytes = bytes.start.min(size)..bytes.end.min(size);
        if self.stage == Stage::Whole {
            return Turn::Read(bytes, reader);
        }
        let lacking = self.here.lacking(bytes.clone());
        if lacking.is_empty() {
            Turn::Read(bytes, reader)
        } else if self.stage == Stage::GivenUp {
            Turn::Fail(reader)
        } else {
            self.waiting.push((bytes, reader));
            Turn::Wait(lacking)
        }
    }

    /// Bytes have come. Gives who waits no longer.
    pub fn came(&mut self, bytes: Range<u64>) -> Vec<Turn<R>> {
        self.here.add(bytes);
        self.turns()
    }

    /// All of it has, or the rest of it will not. Gives who waits no longer.
    pub fn end(&mut self, stage: Stage) -> Vec<Turn<R>> {
        self.stage = stage;
        self.turns()
    }

    fn turns(&mut self) -> Vec<Turn<R>> {
        let waiting = std::mem::take(&mut self.waiting);
        let turns = waiting
            .into_iter()
            .map(|(bytes, reader)| self.read(bytes, reader));
        // Who goes on waiting was put back, and has asked already.
        let turns: Vec<_> = turns.collect();
        turns
            .into_iter()
            .filter(|turn| !matches!(turn, Turn::Wait(_)))
            .collect()
    }

    /// What is not here.
    pub fn lacking(&self) -> Vec<Range<u64>> {
        self.here.all_lacking()
    }

    /// What is waited for.
    pub fn wanted(&self) -> Vec<Range<u64>> {
        let wanted = self.waiting.iter();
        wanted
            .flat_map(|(bytes, _)| self.here.lacking(bytes.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 40 * PAGE_BYTES + 100;

    fn bytes() -> impl Strategy<Value = Range<u64>> {
        (0..SIZE + PAGE_BYTES, 1..9 * PAGE_BYTES).prop_map(|(from, length)| from..from + length)
    }

    proptest! {
        /// Whatever comes in whatever order: who reads gets bytes when all of them are here and not before, each once.
        #[test]
        fn readers_get_what_is_here_and_nothing_else(
            steps in proptest::collection::vec((any::<bool>(), bytes()), 0..60),
            whole in any::<bool>(),
        ) {
            let mut pages = Pages::none(SIZE);
            // Each byte that came; a page counts when it came in one piece.
            let mut model = vec![false; SIZE.div_ceil(PAGE_BYTES) as usize];
            let is_here = |model: &[bool], bytes: &Range<u64>| {
                let end = bytes.end.min(SIZE);
                (0..model.len()).all(|page| {
                    let (from, to) = (page as u64 * PAGE_BYTES, (page as u64 + 1) * PAGE_BYTES);
                    model[page] || end <= from || bytes.start.min(SIZE) >= to || bytes.start.min(SIZE) >= end
                })
            };
            let (mut waiting, mut got) = (Vec::new(), 0);
            for (number, (reads, bytes)) in steps.iter().enumerate() {
                if *reads {
                    match pages.read(bytes.clone(), number) {
                        Turn::Read(_, reader) => {
                            prop_assert_eq!(reader, number);
                            prop_assert!(is_here(&model, bytes));
                            got += 1;
                        }
                        Turn::Wait(lacking) => {
                            prop_assert!(!is_here(&model, bytes) && !lacking.is_empty());
                            waiting.push(number);
                        }
                        Turn::Fail(_) => prop_assert!(false, "nothing was given up"),
                    }
                } else {
                    for (page, here) in model.iter_mut().enumerate() {
                        let (from, to) = (page as u64 * PAGE_BYTES, SIZE.min((page as u64 + 1) * PAGE_BYTES));
                        *here |= bytes.start <= from && to <= bytes.end;
                    }
                    for turn in pages.came(bytes.clone()) {
                        let Turn::Read(_, reader) = turn else { panic!("{turn:?}") };
                        prop_assert!(is_here(&model, &steps[reader].1));
                        waiting.retain(|other| *other != reader);
                        got += 1;
                    }
                    prop_assert!(waiting.iter().all(|reader| !is_here(&model, &steps[*reader].1)));
                }
            }
            prop_assert_eq!(pages.wanted().is_empty(), waiting.is_empty());
            let stage = if whole { Stage::Whole } else { Stage::GivenUp };
            let ended = pages.end(stage);
            prop_assert_eq!(ended.len(), waiting.len());
            prop_assert!(ended.iter().all(|turn| matches!(turn, Turn::Read(..)) == whole));
            prop_assert_eq!(got + ended.len(), steps.iter().filter(|(reads, _)| *reads).count());
        }
    }

    #[test]
    fn what_is_given_up_is_read_as_far_as_it_came() {
        let mut pages = Pages::none(SIZE);
        assert_eq!(pages.came(0..2 * PAGE_BYTES), []);
        assert_eq!(pages.end(Stage::GivenUp), []);
        assert_eq!(pages.read(5..100, 'a'), Turn::Read(5..100, 'a'));
        assert_eq!(pages.read(5..3 * PAGE_BYTES, 'b'), Turn::Fail('b'));
        let rest = 2 * PAGE_BYTES..SIZE;
        assert_eq!(pages.lacking(), std::slice::from_ref(&rest));
    }
}
