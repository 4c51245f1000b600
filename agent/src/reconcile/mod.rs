//! The reconciler: takes the state's latest version, looks at what is, plans once, acts, and goes on. Level-triggered: it
//! does not matter how many changes came since, or whether one was missed.

pub mod collect;
mod execute;
mod observe;
pub mod plan;
mod restart;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use raft::state::{Command as Change, State};
use tokio::time::sleep;

use self::plan::Is;
use crate::{
    clock,
    guest::{Contact, identity},
    metrics,
    node::Node,
};

/// How long after a look the next begins at the earliest.
const PACE: Duration = Duration::from_millis(10);
/// How often it looks without being woken.
const TICK: Duration = Duration::from_secs(1);

/// How often files that nothing refers to are looked for, besides when something was deleted: what a lost agent left.
const SWEEP: Duration = Duration::from_secs(60);

/// Between two tries to get the turn for that.
const TURN_PAUSE: Duration = Duration::from_millis(50);

/// Collects files when somebody says that some are left, and from time to time, until the node ends.
pub async fn sweep_now_and_then(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = node.cancel.cancelled() => return,
            () = node.left_over.notified() => {}
            () = sleep(SWEEP) => {}
        }
        // One under way may have looked before they were left.
        while !node.begin_collection() {
            tokio::select! {
                () = node.cancel.cancelled() => return,
                () = sleep(TURN_PAUSE) => {}
            }
        }
        if let Err(error) = execute::sweep(&node).await {
            tracing::debug!(error = %crate::errors::chain(&error), "files were not collected this time");
        }
        node.end_collection();
    }
}

/// Has guests be told who they are that run and have not been told: those that were booted, and those that an earlier agent left. Forks
/// are told as soon as they run.
fn introduce(node: &Node, state: &State, observed: &plan::Observed) {
    for (id, seen) in &observed.vms {
        let (Is::Booting { boot } | Is::Running { boot } | Is::Paused { boot }) = seen.is else {
            continue;
        };
        let (Some(vm), Some(handle)) = (state.vms.get(id), node.vms.get(*id)) else {
            continue;
        };
        let guest = handle.guest();
        if !guest.is_known_as(&identity::incarnation(*id, boot)) {
            node.introduce(state, vm, boot);
        }
    }
}

/// Tells the cluster what failed of guests' becoming who they are, where that is not known: what follows on that, such as hooks, is done
/// after their fork was answered.
fn report_steps(node: &Arc<Node>, state: &State, observed: &plan::Observed) {
    for (id, seen) in &observed.vms {
        let (Is::Running { boot } | Is::Paused { boot }) = seen.is else {
            continue;
        };
        let (Some(vm), Some(handle)) = (state.vms.get(id), node.vms.get(*id)) else {
            continue;
        };
        let Contact::Speaking(session) = handle.guest().contact() else {
            continue;
        };
        let is_about_this = boot == vm.boot && vm.reported_boot == boot && session.welcome.settled;
        let failed = session.failed_steps();
        if is_about_this && failed != vm.failed_steps {
            // One at a time: the next follows with the change that this makes.
            let vm = *id;
            return execute::report(node, Change::ReportSteps { vm, boot, failed });
        }
    }
}

/// Reconciles until the node ends.
pub async fn run(node: Arc<Node>) {
    let mut published = node.raft.published();
    loop {
        let begun = Instant::now();
        let (state, observed) =
            observe::observe(&node, || Arc::clone(&published.borrow_and_update().view));
        let now = plan::Now {
            cluster: node.now(),
            host: clock::of_host(),
        };
        let actions = plan::plan(&state, node.id(), now, &observed);
        metrics::planned(begun.elapsed());
        for action in actions {
            execute::execute(&node, &state, action);
        }
        introduce(&node, &state, &observed);
        report_steps(&node, &state, &observed);
        if !node.cancel.is_cancelled() {
            node.ports.compare(&state, &node.vms);
        }
        node.forks.forget_stale(&node, &state).await;
        // What comes meanwhile is looked at together: under many writes every look would be at one of them.
        sleep(PACE).await;
        tokio::select! {
            () = node.cancel.cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
            () = node.wake.notified() => {}
            () = sleep(TICK) => {}
        }
    }
}
