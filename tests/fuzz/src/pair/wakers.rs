//! A waker that remembers that it was called.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

/// Whether somebody may go on. At first it may.
pub struct Bell(Arc<Rung>);

struct Rung(AtomicBool);

impl Default for Bell {
    fn default() -> Self {
        Self(Arc::new(Rung(AtomicBool::new(true))))
    }
}

impl Wake for Rung {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Bell {
    pub fn is_rung(&self) -> bool {
        self.0.0.load(Ordering::Relaxed)
    }

    pub fn ring(&self) {
        self.0.0.store(true, Ordering::Relaxed);
    }

    /// For whoever is asked now: if it says to wait, nothing is tried again before it is called.
    pub fn waker(&self) -> Waker {
        self.0.0.store(false, Ordering::Relaxed);
        Waker::from(Arc::clone(&self.0))
    }
}
