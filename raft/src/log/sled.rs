//! The log in a sled database: the only user of sled. Opened by [`crate::consensus`], behind [`LogBackend`].
//!
//! On Linux sled's `flush` hands its pages to the device but does not sync it, whatever its documentation says; so
//! every durable write ends with an `fdatasync` on a descriptor of our own. Values over about 7 KiB would become files
//! of their own that are never synced; so records are stored in smaller parts. The mark lies in a file beside sled's.

use std::{
    fs::{self, File},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use super::{Key, LogBackend, LogError, described, slots::Slots};

/// The most of a record under one key, bytes.
const PART: usize = 6 << 10;

/// sled's default is 1 GiB.
const CACHE: u64 = 64 << 20;

/// How long to wait for a database that is still being closed, by this process or by one that just ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// The file of the mark, beside the database's.
const MARK: &str = "mark";

/// A log in a sled database.
pub struct SledBackend {
    db: sled::Db,
    /// For `fdatasync`: the file that sled writes.
    file: File,
    /// The mark that was found, then the last one that was set.
    mark: Mutex<(Slots, Vec<u8>)>,
}

impl SledBackend {
    /// Opens the database in a folder. With `create` there must be none yet; without there must be one.
    pub fn open(dir: &Path, create: bool) -> Result<Self, LogError> {
        let there = dir.join("db").exists();
        match (there, create) {
            (false, false) => return Err(LogError::Missing(dir.to_owned())),
            (true, true) => return Err(LogError::Exists(dir.to_owned())),
            _ => {}
        }
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| LogError::Open {
            path: dir.to_owned(),
            source,
        };
        if create {
            // Before the database: one without a mark has lost it.
            fs::create_dir_all(dir)
                .and_then(|()| Slots::create(&dir.join(MARK)))
                .and_then(|()| File::open(dir)?.sync_all())
                .map_err(|e| failed(e.into()))?;
        }
        let db = open_patiently(dir)?;
        let mark = Mutex::new(Slots::open(&dir.join(MARK))?);
        let file = File::open(dir.join("db")).map_err(|e| failed(e.into()))?;
        if create {
            db.flush().map_err(|e| failed(e.into()))?;
            sync_new(dir).map_err(|e| failed(e.into()))?;
        }
        Ok(Self { db, file, mark })
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), LogError> {
        self.db
            .insert(key, value)
            .map(|_| ())
            .map_err(|e| LogError::io("written", e))
    }

    fn apply(&self, batch: sled::Batch) -> Result<(), LogError> {
        self.db
            .apply_batch(batch)
            .map_err(|e| LogError::io("written", e))
    }
}

impl LogBackend for SledBackend {
    fn append(&self, records: &[(u64, Bytes)]) -> Result<(), LogError> {
        // A batch costs sled a write of its own before the others.
        if let [(index, record)] = records
            && record.len() <= PART
        {
            return self.insert(&part_key(*index, 0), record);
        }
        let mut batch = sled::Batch::default();
        for (index, record) in records {
            for (number, part) in (0u32..).zip(record.chunks(PART)) {
                batch.insert(&part_key(*index, number)[..], part);
            }
        }
        self.apply(batch)
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let mut records: Vec<(u64, BytesMut)> = Vec::new();
        let mut bytes = 0;
        for item in self
            .db
            .range(part_key(range.start, 0)..part_key(range.end, 0))
        {
            let (key, part) = item.map_err(|e| LogError::io("read", e))?;
            let index = index_of(&key)?;
            match records.last_mut() {
                Some((last, record)) if *last == index => record.extend_from_slice(&part),
                _ if bytes > 0 && bytes + part.len() > max_bytes => break,
                _ => records.push((index, BytesMut::from(&part[..]))),
            }
            bytes += part.len();
        }
        let whole = records.into_iter();
        Ok(whole
            .map(|(index, record)| (index, record.freeze()))
            .collect())
    }

    fn truncate(&self, from: u64) -> Result<(), LogError> {
        let mut batch = sled::Batch::default();
        for key in self
            .db
            .range(part_key(from, 0)..=part_key(u64::MAX, u32::MAX))
            .keys()
        {
            batch.remove(key.map_err(|e| LogError::io("read", e))?);
        }
        self.apply(batch)
    }

    fn remove_upto(&self, index: u64, limit: usize) -> Result<bool, LogError> {
        let mut batch = sled::Batch::default();
        let mut count = 0;
        for key in self
            .db
            .range(part_key(0, 0)..=part_key(index, u32::MAX))
            .keys()
            .take(limit)
        {
            batch.remove(key.map_err(|e| LogError::io("read", e))?);
            count += 1;
        }
        self.apply(batch)?;
        Ok(count == limit)
    }

    fn put(&self, key: Key, value: &[u8]) -> Result<(), LogError> {
        self.insert(value_key(key), value)
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>, LogError> {
        let value = self
            .db
            .get(value_key(key))
            .map_err(|e| LogError::io("read", e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn flush(&self) -> Result<(), LogError> {
        self.db
            .flush()
            .map(|_| ())
            .map_err(|e| LogError::io("written", e))
    }

    fn sync(&self) -> Result<(), LogError> {
        self.flush()?;
        if planted::planted("log.no-fdatasync") {
            return Ok(());
        }
        rustix::fs::fdatasync(&self.file).map_err(|e| LogError::io("synced", e))
    }

    fn mark(&self, value: &[u8]) -> Result<(), LogError> {
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        mark.0.write(value).map_err(|e| LogError::io("marked", e))?;
        mark.1 = value.to_vec();
        Ok(())
    }

    fn marked(&self) -> Result<Vec<u8>, LogError> {
        let mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(mark.1.clone())
    }
}

/// Removes what sled had only begun to write of its table of pages when the agent was killed or the power cut, and says whether there was
/// any. sled 0.34 takes it for the newest one, since it looks for another name than it gives, and does not open. Until one is whole and
/// renamed, the one before counts. sled had the lock when it said that it cannot read what is there: nobody is writing it.
fn remove_half_written(dir: &Path) -> Result<bool, LogError> {
    let mut any = false;
    for entry in fs::read_dir(dir).map_err(|e| LogError::io("opened", e))? {
        let entry = entry.map_err(|e| LogError::io("opened", e))?;
        let name = entry.file_name();
        let is_half = name
            .to_str()
            .is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating"));
        if is_half {
            fs::remove_file(entry.path()).map_err(|e| LogError::io("opened", e))?;
            any = true;
        }
    }
    Ok(any)
}

fn open_patiently(dir: &Path) -> Result<sled::Db, LogError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE)
            .flush_every_ms(None);
        // It panics at some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|panic| {
            let told = described(&*panic);
            LogError::Damaged(format!("{} cannot be read ({told})", dir.display()))
        })?;
        match opened {
            Ok(db) => return Ok(db),
            Err(sled::Error::Corruption { .. }) if remove_half_written(dir)? => {}
            // sled has no kind for it.
            Err(e) if e.to_string().contains("could not acquire lock") => {
                if Instant::now() >= deadline {
                    return Err(LogError::Locked {
                        path: dir.to_owned(),
                        source: e.into(),
                    });
                }
                thread::sleep(Duration::from_millis(20));
            }
            Err(e) => {
                return Err(LogError::Open {
                    path: dir.to_owned(),
                    source: e.into(),
                });
            }
        }
    }
}

/// Makes a new database's files and names durable.
fn sync_new(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(dir)?.sync_all()?;
    match dir.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn part_key(index: u64, part: u32) -> [u8; 13] {
    let mut key = [b'l'; 13];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&part.to_be_bytes());
    key
}

fn index_of(key: &[u8]) -> Result<u64, LogError> {
    match key.get(1..9).and_then(|index| index.try_into().ok()) {
        Some(index) => Ok(u64::from_be_bytes(index)),
        None => Err(LogError::Damaged("a record has no index".into())),
    }
}

fn value_key(key: Key) -> &'static [u8] {
    match key {
        Key::Identity => b"m:identity",
        Key::Vote => b"m:vote",
        Key::Committed => b"m:committed",
        Key::Purged => b"m:purged",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_records_come_back_whole_and_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(matches!(
            SledBackend::open(&path, false),
            Err(LogError::Missing(_))
        ));
        let records: Vec<(u64, Bytes)> = [(4u64, 1usize), (5, 3 * PART), (6, 3 * PART + 1)]
            .into_iter()
            .map(|(index, length)| (index, vec![u8::try_from(index).unwrap(); length].into()))
            .collect();
        {
            let log = SledBackend::open(&path, true).unwrap();
            log.append(&records).unwrap();
            log.put(Key::Vote, b"vote").unwrap();
        }
        let log = SledBackend::open(&path, false).unwrap();
        assert_eq!(log.read(0..u64::MAX, usize::MAX).unwrap(), records);
        assert_eq!(log.read(5..6, usize::MAX).unwrap(), records[1..2]);
        assert_eq!(log.read(4..7, 0).unwrap(), records[..1]);
        assert_eq!(log.get(Key::Vote).unwrap().unwrap(), b"vote");
        log.truncate(6).unwrap();
        assert!(log.remove_upto(4, 1).unwrap());
        assert!(!log.remove_upto(4, 1).unwrap());
        assert_eq!(log.read(0..u64::MAX, usize::MAX).unwrap(), records[1..2]);
        drop(log);
        assert!(matches!(
            SledBackend::open(&path, true),
            Err(LogError::Exists(_))
        ));
    }
}
