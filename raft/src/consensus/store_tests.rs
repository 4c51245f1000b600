//! openraft's own checks of a store, and what a damaged log looks like when it is opened.

use std::{path::Path, sync::Arc};

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::{
    app::{App, AppError, Members},
    machine::Machine,
    snapshots::Snapshots,
    types::{StorageError, TypeConfig},
};
use crate::log::{Durable, Identity, LogGuard, LogStore, sled::SledBackend};

/// Counts proposals.
#[derive(Default)]
struct Counter(u64);

impl App for Counter {
    type View = u64;

    fn is_readable(_: &[u8]) -> bool {
        true
    }

    fn apply(&mut self, _: &[u8]) -> Result<Vec<u8>, AppError> {
        self.0 += 1;
        Ok(self.0.to_be_bytes().to_vec())
    }

    fn view(&self) -> u64 {
        self.0
    }

    fn snapshot(view: &u64) -> Vec<u8> {
        view.to_be_bytes().to_vec()
    }

    fn restore(snapshot: &[u8]) -> Result<Self, AppError> {
        let number = snapshot.try_into().map_err(|e| AppError(Box::new(e)))?;
        Ok(Self(u64::from_be_bytes(number)))
    }

    fn members(&self) -> Members {
        Members::new()
    }
}

fn open_log(dir: &Path, create: bool) -> (LogStore, LogGuard) {
    let identity = Identity {
        cluster_id: "suite".into(),
        node_id: 0,
    };
    let backend = SledBackend::open(&dir.join("log"), create).unwrap();
    LogStore::open(backend, &identity).unwrap()
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine<Counter>, (LogGuard, TempDir)> for Builder {
    async fn build(
        &self,
    ) -> Result<((LogGuard, TempDir), LogStore, Machine<Counter>), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let (log, guard) = open_log(dir.path(), true);
        log.allow_gaps();
        let (snapshots, newest) = Snapshots::open(&dir.path().join("snapshots")).unwrap();
        let (machine, _) =
            Machine::new(Arc::new(snapshots), newest, Durable::of_everything()).unwrap();
        Ok(((guard, dir), log, machine))
    }
}

#[test]
fn the_stores_pass_openrafts_suite() {
    Suite::test_all(Builder).unwrap();
}
