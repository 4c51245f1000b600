//! Suspending a VM: its moment is captured and brought to the disk, then its process ends. The guest stands still from the capture
//! on; when anything fails before the process ends, the reconciler lets it go on.

use std::{sync::Arc, time::Duration};

use qemu::{capture::Afterwards, failpoint};
use raft::state::{Command as Change, Operation, OperationState, Safety, Snapshot, State};
use tokio::time::Instant;

use super::run::{Run, failed, running};
use crate::{store::Way, vms::command::Command};

/// How long a moment may take to come to the disk: a base of several GiB, on a disk that others use too.
const SECURE_PATIENCE: Duration = Duration::from_secs(600);

impl Run {
    pub(super) async fn suspend(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
        way: Way<'_>,
    ) -> Result<(), String> {
        let id = operation.vm.ok_or("it has no VM")?;
        if snapshot.content.is_none() {
            self.admit(operation, &[])?;
            let content = self
                .capture(state, operation, Afterwards::Hold, None)
                .await?;
            failpoint::reached("suspend.captured");
            let ready = Change::SnapshotReady {
                operation: operation.id,
                content,
            };
            if let Some(Err(rejection)) = self.node.report(ready).await {
                return Err(rejection.to_string());
            }
        }
        self.note("captured");
        failpoint::reached("suspend.told");
        // Bringing it to the disk is such work.
        drop(way);
        self.node.wake.notify_one();
        let secured = self.secured(operation, snapshot).await;
        self.check_cancelled()?;
        if let Err(problem) = secured {
            self.report(vec![(0, failed(problem))]).await;
            return Ok(());
        }
        failpoint::reached("suspend.secured");
        if let Some(handle) = self.node.vms.get(id) {
            handle
                .ask(|done| Command::PutAway { done })
                .await
                .map_err(|error| error.to_string())?;
        }
        failpoint::reached("suspend.put-away");
        self.report(vec![(0, running(self.begun.elapsed()))]).await;
        Ok(())
    }

    /// Waits until the moment is on disk. The reconciler has that done, first of all snapshots.
    async fn secured(&self, operation: &Operation, snapshot: &Snapshot) -> Result<(), String> {
        let deadline = Instant::now() + SECURE_PATIENCE;
        let secured = self.node.wait_for(deadline, |state| {
            let open = state
                .operations
                .get(&operation.id)
                .is_some_and(|operation| operation.state == OperationState::Open);
            let Some(found) = state.snapshots.get(&snapshot.id).filter(|_| open) else {
                return Some(Err("the operation was ended".to_owned()));
            };
            if found.nodes.is_empty() {
                return Some(Err(format!("its moment was lost: {}", found.lost)));
            }
            match found.content.as_ref().map(|content| &content.safety) {
                Some(Safety::Disk(_)) => Some(Ok(())),
                Some(Safety::Memory) | None => None,
            }
        });
        tokio::select! {
            secured = secured => secured.unwrap_or_else(|| {
                Err(format!(
                    "its moment did not come to the disk within {} s",
                    SECURE_PATIENCE.as_secs()
                ))
            }),
            () = self.cancel.cancelled() => Err("it was cancelled".to_owned()),
        }
    }
}
