//! What a process wrote to its disk, recorded below whatever wrote it, and what a disk may hold of that when the power is cut.
//!
//! The record is strace's: every call that changes a file or a name, or syncs one, in the order in which they were made. After
//! a cut a file holds all that was written before its last sync that had returned, and of what was written since each sector
//! or not; a folder holds the names that it had at its last sync, and of the changes since the first few. Nothing else is
//! taken for granted: neither that a new file's name is there because its content was synced, nor any order between files.

use std::{
    collections::BTreeMap,
    env, fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// What a disk writes whole or not at all, bytes.
const SECTOR: usize = 512;

/// The calls that are recorded.
const CALLS: &str = "openat,write,pwrite64,lseek,ftruncate,rename,unlink,mkdir,fsync,fdatasync";

/// A change of a file's content.
enum Change {
    Write { at: usize, data: Vec<u8> },
    Length(usize),
}

/// A change of a folder's names, all or nothing.
type Names = Vec<(String, Option<usize>)>;

/// Something that was done between two moments, which are lines of the record.
struct Timed<T> {
    begun: usize,
    ended: usize,
    what: T,
}

/// A file or a folder: what was changed of it, and when it was synced.
struct Kept<T> {
    changes: Vec<Timed<T>>,
    syncs: Vec<(usize, usize)>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            syncs: Vec::new(),
        }
    }
}

impl<T> Kept<T> {
    /// How many of the changes a disk has for sure, and how many it may have.
    fn at(&self, cut: usize) -> (usize, usize) {
        let synced = self.syncs.iter().filter(|(_, ended)| *ended < cut);
        let since = synced.map(|(begun, _)| *begun).max();
        let sure = self.changes.iter();
        let sure = sure.take_while(|change| since.is_some_and(|since| change.ended < since));
        let possible = self.changes.iter().take_while(|change| change.begun < cut);
        (sure.count(), possible.count())
    }
}

/// How much of what was not synced a disk keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Luck {
    Nothing,
    Everything,
    /// Any of it.
    Any,
}

/// The variable that names the file of what was told.
pub const TOLD: &str = "FP_POWER_CUT_TOLD";
const TOLD_NAME: &str = "told";

/// Numbers that look random: splitmix64.
pub fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A record of what was written.
#[derive(Default)]
pub struct Device {
    files: Vec<Kept<Change>>,
    folders: BTreeMap<PathBuf, Kept<Names>>,
    /// What was written to the file of what was told, and when it was.
    pub told: Vec<(usize, String)>,
    /// The number of its lines.
    pub end: usize,
}

/// What is known while a record is read.
#[derive(Default)]
struct Reader {
    device: Device,
    paths: BTreeMap<PathBuf, usize>,
    offsets: BTreeMap<String, usize>,
    told: String,
}

impl Device {
    /// Records what a test of this program writes, with a bug planted in it or not.
    pub fn record(test: &str, planted: Option<&str>) -> Self {
        let work = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (record, told) = (work.path().join("record"), work.path().join(TOLD_NAME));
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "--seccomp-bpf", "-xx", "-y", "-s", "100000000", "-e"])
            .arg(format!("trace={CALLS}"))
            .arg("-o")
            .arg(&record)
            .arg(env::current_exe().unwrap())
            .args(["--ignored", "--exact", test])
            .env(TOLD, &told)
            .env("TMPDIR", work.path());
        if let Some(bug) = planted {
            strace.env("FP_PLANTED", bug);
        }
        let output = strace
            .output()
            .expect("strace: deploy/deps.sh --test installs it");
        assert!(output.status.success(), "{output:?}");
        Self::read(&fs::read_to_string(&record).unwrap(), TOLD_NAME)
    }

    /// Reads a record. `told` is the name of the file that holds what was told to others.
    fn read(record: &str, told: &str) -> Self {
        let mut reader = Reader {
            told: told.to_owned(),
            ..Reader::default()
        };
        let mut open: BTreeMap<&str, (usize, String)> = BTreeMap::new();
        for (number, line) in record.lines().enumerate() {
            let Some((process, rest)) = line.split_once(' ') else {
                continue;
            };
            let rest = rest.trim_start();
            if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
                open.insert(process, (number, begun.to_owned()));
            } else if let Some(resumed) = rest.strip_prefix("<... ") {
                let end = resumed.split_once(" resumed>").expect("a resumed call").1;
                let (begun, beginning) = open.remove(process).expect("what is resumed was begun");
                reader.call(begun, number, &format!("{beginning}{end}"));
            } else {
                reader.call(number, number, rest);
            }
        }
        // What was under way when the process ended may have been done.
        for (begun, call) in open.into_values() {
            reader.call(begun, usize::MAX, &call);
        }
        reader.device.end = record.lines().count();
        reader.device
    }

    /// The folder of a name.
    pub fn folder(&self, name: &str) -> PathBuf {
        let mut folders = self.folders.keys();
        let found = folders.find(|folder| folder.ends_with(name));
        found.expect("it was made").clone()
    }

    /// The folder above those, of one member each, that have such a file.
    pub fn folder_of(&self, file: &str) -> Option<PathBuf> {
        let file = Path::new(file);
        let inside = file.parent()?;
        let folder = self
            .folders
            .keys()
            .find(|folder| folder.ends_with(inside))?;
        let above = inside.components().count() + 1;
        folder.ancestors().nth(above).map(Path::to_owned)
    }

    /// Makes a folder as the disk may hold it when the power is cut before a line.
    pub fn restore(
        &self,
        from: &Path,
        to: &Path,
        cut: usize,
        luck: Luck,
        random: &mut impl FnMut(u64) -> u64,
    ) {
        for (folder, kept) in &self.folders {
            let Ok(inside) = folder.strip_prefix(from) else {
                continue;
            };
            let (sure, possible) = kept.at(cut);
            let count = sure
                + match luck {
                    Luck::Nothing => 0,
                    Luck::Everything => possible - sure,
                    Luck::Any => random((possible - sure) as u64 + 1) as usize,
                };
            let mut names: BTreeMap<&str, usize> = BTreeMap::new();
            for change in &kept.changes[..count] {
                for (name, file) in &change.what {
                    match file {
                        Some(file) => names.insert(name, *file),
                        None => names.remove(name.as_str()),
                    };
                }
            }
            let folder = to.join(inside);
            fs::create_dir_all(&folder).unwrap();
            for (name, file) in names {
                let content = self.content(file, cut, luck, random);
                fs::write(folder.join(name), content).unwrap();
            }
        }
    }

    /// The writes to a file that a disk has for sure when the power is cut before a line: where each begins and ends, the newest first.
    pub fn sure(&self, path: &Path, cut: usize) -> Vec<Range<usize>> {
        let kept = self.kept(path);
        let changes = kept.changes[..kept.at(cut).0].iter().rev();
        let writes = changes.filter_map(|change| match &change.what {
            Change::Write { at, data } => Some(*at..at + data.len()),
            Change::Length(_) => None,
        });
        writes.collect()
    }

    /// The file that a disk has then which lost some of those writes, after it had said that it has them.
    pub fn without(&self, path: &Path, cut: usize, lost: &Range<usize>) -> Vec<u8> {
        let kept = self.kept(path);
        let changes = &kept.changes[..kept.at(cut).0];
        let is_write = |change: &&Timed<Change>| matches!(change.what, Change::Write { .. });
        let mut newer = changes.iter().filter(is_write).count();
        let mut content = Vec::new();
        for change in changes {
            match &change.what {
                Change::Length(length) => content.resize(*length, 0),
                Change::Write { at, data } => {
                    newer -= 1;
                    if !lost.contains(&newer) {
                        content.resize(content.len().max(at + data.len()), 0);
                        content[*at..at + data.len()].copy_from_slice(data);
                    }
                }
            }
        }
        content
    }

    fn kept(&self, path: &Path) -> &Kept<Change> {
        let folder = &self.folders[path.parent().unwrap()];
        let name = file_name(path);
        let changes = folder.changes.iter().flat_map(|change| &change.what);
        let file = changes.rev().find(|(changed, _)| *changed == name);
        &self.files[file.unwrap().1.expect("a file")]
    }

    fn content(
        &self,
        file: usize,
        cut: usize,
        luck: Luck,
        random: &mut impl FnMut(u64) -> u64,
    ) -> Vec<u8> {
        let kept = &self.files[file];
        let (sure, possible) = kept.at(cut);
        let mut content = Vec::new();
        for (number, change) in kept.changes[..possible].iter().enumerate() {
            let mut keeps = || match luck {
                _ if number < sure => true,
                Luck::Nothing => false,
                Luck::Everything => true,
                Luck::Any => random(2) == 0,
            };
            match &change.what {
                Change::Length(length) => {
                    if keeps() {
                        content.resize(*length, 0);
                    }
                }
                Change::Write { at, data } => {
                    let mut done = 0;
                    while done < data.len() {
                        let start = at + done;
                        let length = (SECTOR - start % SECTOR).min(data.len() - done);
                        if keeps() {
                            content.resize(content.len().max(start + length), 0);
                            content[start..start + length]
                                .copy_from_slice(&data[done..done + length]);
                        }
                        done += length;
                    }
                }
            }
        }
        content
    }
}

impl Reader {
    /// Takes in a call that was made: `name(arguments) = result`.
    fn call(&mut self, begun: usize, ended: usize, text: &str) {
        let Some((name, rest)) = text.split_once('(') else {
            return;
        };
        let (arguments, result) = rest.rsplit_once(" = ").unwrap_or((rest, "0"));
        if result.starts_with('-') {
            return;
        }
        let timed = (begun, ended);
        let mut quoted = arguments.split('"').skip(1).step_by(2).map(bytes);
        let mut path = || path(quoted.next().expect("a path"));
        match name {
            "mkdir" => {
                let path = path();
                self.device.folders.entry(path).or_default();
            }
            "openat" => {
                let path = path();
                self.opened(timed, path, arguments);
                self.offsets.insert(descriptor(result).to_owned(), 0);
            }
            "rename" => {
                let (from, to) = (path(), path());
                if let Some(file) = self.paths.remove(&from) {
                    self.paths.insert(to.clone(), file);
                    let names = vec![(file_name(&from), None), (file_name(&to), Some(file))];
                    self.name(timed, &to, names);
                }
            }
            "unlink" => {
                let path = path();
                self.paths.remove(&path);
                self.name(timed, &path, vec![(file_name(&path), None)]);
            }
            _ => self.on_open(timed, name, arguments, result),
        }
    }

    /// A call on an open file.
    fn on_open(&mut self, timed: (usize, usize), name: &str, arguments: &str, result: &str) {
        let handle = descriptor(arguments).to_owned();
        let path = arguments
            .split_once('<')
            .and_then(|(_, rest)| rest.split_once('>'));
        let Some(path) = path.map(|(path, _)| self::path(bytes(path))) else {
            return;
        };
        let last = || {
            let number = arguments
                .trim_end()
                .trim_end_matches(')')
                .rsplit(", ")
                .next();
            number.and_then(|number| number.parse::<usize>().ok())
        };
        let data = || bytes(arguments.split('"').nth(1).unwrap_or_default());
        match name {
            "lseek" => {
                let at = result.trim().parse().unwrap_or(0);
                self.offsets.insert(handle, at);
            }
            "write" => {
                let data = data();
                if file_name(&path) == self.told {
                    let text = String::from_utf8(data).expect("what was told is text");
                    let lines = text.lines().map(|line| (timed.0, line.to_owned()));
                    self.device.told.extend(lines);
                    return;
                }
                let offset = self.offsets.entry(handle).or_default();
                let at = *offset;
                *offset += data.len();
                self.change(timed, &path, Change::Write { at, data });
            }
            "pwrite64" => {
                let at = last().unwrap_or_else(|| {
                    panic!(
                        "no offset in {}",
                        &arguments[arguments.len().saturating_sub(80)..]
                    )
                });
                let data = data();
                self.change(timed, &path, Change::Write { at, data });
            }
            "ftruncate" => self.change(timed, &path, Change::Length(last().expect("a length"))),
            "fsync" | "fdatasync" => {
                if let Some(file) = self.paths.get(&path) {
                    self.device.files[*file].syncs.push(timed);
                } else if let Some(folder) = self.device.folders.get_mut(&path) {
                    folder.syncs.push(timed);
                }
            }
            _ => {}
        }
    }

    fn opened(&mut self, timed: (usize, usize), path: PathBuf, arguments: &str) {
        if arguments.contains("O_CREAT") && !self.paths.contains_key(&path) {
            let file = self.device.files.len();
            self.device.files.push(Kept::default());
            self.paths.insert(path.clone(), file);
            self.name(timed, &path, vec![(file_name(&path), Some(file))]);
        }
        if arguments.contains("O_TRUNC") {
            self.change(timed, &path, Change::Length(0));
        }
    }

    fn change(&mut self, (begun, ended): (usize, usize), path: &Path, what: Change) {
        if let Some(file) = self.paths.get(path) {
            let change = Timed { begun, ended, what };
            self.device.files[*file].changes.push(change);
        }
    }

    fn name(&mut self, (begun, ended): (usize, usize), path: &Path, what: Names) {
        if let Some(folder) = path.parent()
            && let Some(folder) = self.device.folders.get_mut(folder)
        {
            folder.changes.push(Timed { begun, ended, what });
        }
    }
}

fn descriptor(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_digit());
    &text[..end.unwrap_or(text.len())]
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8(bytes).unwrap().into()
}

/// The bytes of a string as strace writes them with `-xx`.
fn bytes(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    digits
        .map(|two| u8::from_str_radix(&two[..2], 16).unwrap())
        .collect()
}
