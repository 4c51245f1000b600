//! A witness of whether a VM runs, on any host of a cluster, that neither its agent nor the network between the hosts can hold up: the
//! layer that its guest writes to. For guests with `fp.pulse`, which write to their disk at every beat.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use qemu::{
    layout::Layout,
    record::{VmName, VmRecord},
};

/// How often is looked. What was written in between is seen by its time all the same.
const PAUSE: Duration = Duration::from_millis(20);

/// When a VM wrote first and last on each host since the witness began.
pub type Times = BTreeMap<PathBuf, (SystemTime, SystemTime)>;

/// Looks until it is asked what it saw.
pub struct Witness {
    seen: Arc<Mutex<Times>>,
    is_over: Arc<AtomicBool>,
    looking: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Witness {
    /// Of a VM, by its id, below these data directories.
    pub fn of(vm: &str, folders: Vec<PathBuf>) -> Self {
        let (seen, is_over) = (Arc::<Mutex<Times>>::default(), Arc::<AtomicBool>::default());
        let (times, over, vm) = (Arc::clone(&seen), Arc::clone(&is_over), vm.to_owned());
        let begun = SystemTime::now();
        let looking = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for folder in &folders {
                    if let Some(at) = written(folder, &vm)?.filter(|at| *at > begun) {
                        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                        let known = times.entry(folder.clone()).or_insert((at, at));
                        known.1 = known.1.max(at);
                    }
                }
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        Self {
            seen,
            is_over,
            looking: Some(looking),
        }
    }

    /// What it saw.
    pub fn end(mut self) -> anyhow::Result<Times> {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(looking) = self.looking.take() {
            looking
                .join()
                .map_err(|_| anyhow::anyhow!("the witness panicked"))??;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(seen.clone())
    }
}

/// When a VM's newest layer was written to last; `None` where there is nothing of it.
fn written(folder: &Path, vm: &str) -> anyhow::Result<Option<SystemTime>> {
    if !folder.join("vms").join(vm).exists() {
        return Ok(None);
    }
    let layout = Layout::create(folder, None)?;
    // It may be moving away, or be about to have its first record.
    let record = VmRecord::load(&layout.vm(&VmName(vm.to_owned())));
    let Some(layer) = record
        .ok()
        .flatten()
        .and_then(|one| one.layers.first().cloned())
    else {
        return Ok(None);
    };
    let meta = fs::metadata(layout.layer(&layer));
    Ok(meta.ok().and_then(|meta| meta.modified().ok()))
}
