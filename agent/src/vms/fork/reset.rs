//! Setting a VM to the moment of a snapshot: a process is loaded with that moment as for a fork, under an id of its own; then the
//! VM's process gives way, and the new one takes its id and goes on.
//!
//! Until the old process gives way the VM is as it was. From then on the operation is carried out to its end, also by an agent
//! that comes later: it finds that the VM has nothing here, or that its next boot is there.

use std::{sync::Arc, time::Duration};

use qemu::failpoint;
use raft::state::{CHILD_BYTES, ChildResult, Operation, Snapshot, State, Vm, VmId};

use super::{
    Parts,
    run::{Became, Run, became, check, destroy, failed, go_on, load_child, running},
};
use crate::{
    admission::Need,
    reconcile::plan::Is,
    vms::{
        VmHandle,
        command::{Command, Then},
        launch,
    },
};

impl Run {
    pub(super) async fn reset(
        &mut self,
        state: &Arc<State>,
        operation: &Operation,
        snapshot: &Snapshot,
    ) -> Result<(), String> {
        let id = operation.vm.ok_or("it has no VM")?;
        let vm = state.vms.get(&id).ok_or("the VM was deleted meanwhile")?;
        let boot = vm.boot + 1;
        if self.is_there(id, boot) {
            // An agent that was lost had come that far.
            self.report(vec![(0, running(Duration::ZERO))]).await;
            return Ok(());
        }
        let handle = match self.load_moment(operation, snapshot, boot).await {
            Ok(handle) => handle,
            Err(problem) => {
                if let Some(scrap) = self.node.vms.get(operation.id.child(0)) {
                    destroy(&scrap).await;
                }
                if self.node.vms.get(id).is_some() {
                    return Err(problem);
                }
                // It had given way before an agent was lost: it cannot be as it was.
                self.report(vec![(0, lost(problem))]).await;
                return Ok(());
            }
        };
        self.note("loaded");
        failpoint::reached("reset.loaded");
        let result = self
            .take_place(vm, operation, snapshot, &handle, boot)
            .await;
        self.report(vec![(0, result)]).await;
        // What it was before.
        self.node.left_over.notify_one();
        if !self.node.state().vms.contains_key(&id) {
            // Deleted meanwhile, perhaps when it had nothing here.
            destroy(&handle).await;
        }
        Ok(())
    }

    fn is_there(&self, vm: VmId, wanted: u64) -> bool {
        let seen = self.node.vms.get(vm).map(|handle| handle.seen().is);
        matches!(seen, Some(Is::Running { boot } | Is::Paused { boot }) if boot >= wanted)
    }

    /// A process that stands at the snapshot's moment.
    async fn load_moment(
        &mut self,
        operation: &Operation,
        snapshot: &Snapshot,
        boot: u64,
    ) -> Result<VmHandle, String> {
        let content = snapshot
            .content
            .as_ref()
            .ok_or("its snapshot is not ready")?;
        self.node.store.check_usable(snapshot.id, content)?;
        let child = launch::Child {
            id: operation.id.child(0),
            boot,
            spec: snapshot.spec.clone(),
        };
        if self.prepared.ready.is_none() && self.prepared.starting.is_empty() {
            // Nobody told this node ahead.
            self.prepared.ready = Some((snapshot.id, self.node.pool.take(snapshot.id, 1)));
        }
        if let Some(handle) = self.take_ready(child.id) {
            return Ok(handle);
        }
        self.node.admit(Need {
            memory: CHILD_BYTES,
            disk: 0,
        })?;
        let hardware = launch::snapshot_hardware(&snapshot.spec, content, &self.node.fitness)
            .map_err(|unfit| unfit.to_string())?;
        let starting = self.prepared.starting.remove(&0);
        load_child(
            &self.node,
            &child,
            hardware,
            &Parts::of(content),
            check(&self.node, launch::stream(content)),
            starting,
        )
        .await
    }

    /// Has the VM's process give way to one that is loaded.
    async fn take_place(
        &self,
        vm: &Vm,
        operation: &Operation,
        snapshot: &Snapshot,
        handle: &VmHandle,
        boot: u64,
    ) -> ChildResult {
        let scratch = operation.id.child(0);
        let gave_way = async {
            self.check_cancelled()?;
            match self.node.vms.get(vm.id) {
                Some(old) => old
                    .ask(|done| Command::MakeWay { done })
                    .await
                    .map_err(|error| error.to_string())?,
                None => Ok(()),
            }
        };
        if let Err(problem) = gave_way.await {
            destroy(handle).await;
            return failed(problem);
        }
        failpoint::reached("reset.gave-way");
        self.node.vms.replace(scratch, vm.id);
        let then = Then::unless_paused(operation.paused);
        match go_on(handle, vm.id, boot, then).await {
            Ok(at) => {
                failpoint::reached("reset.went-on");
                if operation.paused {
                    return running(at - self.begun);
                }
                // It is the same VM, at another moment: its clock and its random numbers must not be.
                self.node.introduce(&self.node.state(), vm, boot);
                let became = match snapshot
                    .content
                    .as_ref()
                    .is_some_and(|content| content.agent)
                {
                    true => became(handle, vm.id, boot, self.node.vms.becoming().one()).await,
                    false => Became::default(),
                };
                self.went_on(at, became)
            }
            Err(problem) => {
                destroy(handle).await;
                lost(problem)
            }
        }
    }
}

/// A reset that failed when there was nothing to go back to any more.
fn lost(problem: String) -> ChildResult {
    ChildResult {
        gave_way: true,
        ..failed(format!(
            "its reset broke off ({problem}); starting it tries again"
        ))
    }
}
