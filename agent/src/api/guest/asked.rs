//! What guests ask for: to be forked, to end, and how those that they forked have ended. A guest speaks for its own VM only.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use guest::channel::{
    link::Stream,
    message::{self, Answer, Child, Ended, Forked, request::What},
    mux::Broken,
};
use proto::v1::{ForkRequest, ForkResponse};
use raft::state::{Actor, Phase, State, Vm, VmId};
use tokio::{sync::mpsc, time::Instant};

use super::super::Api;
use crate::{
    guest::{Asked, identity},
    node::Node,
    vms::command::Command,
};

/// How long a fork that a guest asks for may take. Then it is told so; the same request asks again.
const FORK_PATIENCE: Duration = Duration::from_secs(120);
/// How long a name for a guest's request may be: with what goes before it, it names a request of the cluster.
const LONGEST_REQUEST: usize = 28;

/// Does what guests ask for until the node ends.
pub async fn run(node: Arc<Node>, mut requests: mpsc::Receiver<Asked>) {
    let api = Api { node };
    loop {
        let asked = tokio::select! {
            () = api.node.cancel.cancelled() => return,
            asked = requests.recv() => asked,
        };
        let Some(Asked { vm, what, stream }) = asked else {
            return;
        };
        let Ok(vm) = vm.parse::<VmId>() else {
            stream.fail("this VM has no id");
            continue;
        };
        let api = api.clone();
        let ended = api.node.cancel.clone();
        api.node.clone().tasks.spawn(async move {
            let done = tokio::select! {
                () = ended.cancelled() => Err(Broken::Lost("the host's agent ends".to_owned())),
                done = api.answer(vm, what, &stream) => done,
            };
            match done {
                Ok(()) => stream.close(),
                // The guest is not there to be told.
                Err(broken) => tracing::debug!(%vm, %broken, "a guest's request was broken off"),
            }
        });
    }
}

impl Api {
    async fn answer(&self, vm: VmId, what: What, stream: &Stream) -> Result<(), Broken> {
        match what {
            What::Fork(fork) => {
                let forked = match self.fork_for(vm, fork).await {
                    Ok(response) => forked(&response),
                    Err(error) => Forked {
                        error,
                        children: Vec::new(),
                    },
                };
                stream.tell(&forked).await
            }
            What::Exit(exit) => {
                let problem = match self.node.vms.get(vm) {
                    Some(handle) => handle
                        .ask(|done| Command::Exit {
                            code: exit.code,
                            done,
                        })
                        .await
                        .err(),
                    None => None,
                };
                // Where it worked nobody is there to be told.
                let error = problem.map_or_else(
                    || "its process does not end".to_owned(),
                    |gone| gone.to_string(),
                );
                stream.tell(&Answer { error }).await
            }
            What::Wait(wait) => self.wait_for_children(vm, &wait.children, stream).await,
            What::Exec(_) | What::Send(_) | What::Receive(_) | What::Forward(_) | What::Look(_) => {
                stream.fail("a guest does not ask that of its host");
                Ok(())
            }
        }
    }

    async fn fork_for(&self, vm: VmId, fork: message::Fork) -> Result<ForkResponse, String> {
        let is_name = |text: &str| {
            (1..=LONGEST_REQUEST).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if !is_name(&fork.request) {
            return Err(format!(
                "a request is named by 1 to {LONGEST_REQUEST} hexadecimal digits"
            ));
        }
        let request = ForkRequest {
            source: vm.to_string(),
            count: fork.count,
            name: fork.name,
            request_id: format!("{}{}", identity::request_prefix(vm), fork.request),
            ..ForkRequest::default()
        };
        let now = Instant::now();
        let deadline = now + FORK_PATIENCE;
        let up = |state: &Arc<State>| is_known_to_be_up(state.vms.get(&vm)).then_some(());
        // Where it is not, the fork is refused with the reason.
        let _in_time = self.node.wait_for(deadline, up).await;
        // A machine acts for whoever has it.
        let by = match self.node.state().vms.get(&vm) {
            Some(vm) => Actor::user(vm.ownership.owner.as_str()),
            None => return Err("this VM is not there any more".to_owned()),
        };
        self.fork_as_asked(&by, request, true, now, deadline)
            .await
            .map_err(|error| error.to_string())
    }

    /// Tells how children end, as they do, until all have or nobody listens any more.
    async fn wait_for_children(
        &self,
        vm: VmId,
        wanted: &[String],
        stream: &Stream,
    ) -> Result<(), Broken> {
        let deadline = Instant::now() + FORK_PATIENCE;
        let state = match self.read(deadline).await {
            Ok(state) => state,
            Err(error) => return refuse(stream, error.to_string()).await,
        };
        let mut waiting = match children(&state, vm, wanted) {
            Ok(children) => children,
            Err(problem) => return refuse(stream, problem).await,
        };
        let mut published = self.node.raft.published();
        loop {
            let state = Arc::clone(&published.borrow_and_update().view);
            let ended: Vec<VmId> = waiting
                .iter()
                .copied()
                .filter(|child| has_ended(state.vms.get(child)))
                .collect();
            for child in ended {
                waiting.remove(&child);
                stream.tell(&how_it_ended(&state, child)).await?;
            }
            if waiting.is_empty() {
                return Ok(());
            }
            tokio::select! {
                changed = published.changed() => if changed.is_err() {
                    return Err(Broken::Lost("the host's agent ends".to_owned()));
                },
                // It says nothing more: this is its end.
                _gone = stream.hear::<Answer>() => return Err(Broken::Cancelled),
            }
        }
    }
}

fn forked(response: &ForkResponse) -> Forked {
    let child = |child: &proto::v1::ForkedVm| Child {
        name: child.name.clone(),
        id: child.id.clone(),
        error: child.error.clone(),
    };
    Forked {
        error: String::new(),
        children: response.children.iter().map(child).collect(),
    }
}

async fn refuse(stream: &Stream, error: String) -> Result<(), Broken> {
    let refused = Ended {
        error,
        ..Ended::default()
    };
    stream.tell(&refused).await
}

/// Those of a VM's children that are meant: all that it forked by itself when none is named.
fn children(state: &State, parent: VmId, wanted: &[String]) -> Result<BTreeSet<VmId>, String> {
    let is_child = |vm: &Vm| {
        vm.by_guest
            && vm
                .parent
                .as_ref()
                .is_some_and(|captured| captured.vm == parent)
    };
    let all = state.vms.values().filter(|vm| is_child(vm));
    if wanted.is_empty() {
        return Ok(all.map(|vm| vm.id).collect());
    }
    let all: Vec<_> = all.collect();
    let find = |name: &String| {
        all.iter()
            .find(|vm| vm.name == *name || vm.id.to_string() == *name)
            .map(|vm| vm.id)
            .ok_or_else(|| format!("this VM has forked no {name:?} by itself"))
    };
    wanted.iter().map(find).collect()
}

/// Whether the cluster knows how it is with a VM since it was started last: a fork is itself, and may ask, before that is reported.
fn is_known_to_be_up(vm: Option<&Arc<Vm>>) -> bool {
    vm.is_none_or(|vm| {
        vm.reported_boot == vm.boot && !matches!(vm.phase, Phase::Pending | Phase::Restarting)
    })
}

/// Whether a VM has ended for good; one that is gone has.
fn has_ended(vm: Option<&Arc<Vm>>) -> bool {
    vm.is_none_or(|vm| {
        matches!(vm.phase, Phase::Stopped | Phase::Failed) && vm.reported_boot == vm.boot
    })
}

fn how_it_ended(state: &State, child: VmId) -> Ended {
    let Some(vm) = state.vms.get(&child) else {
        return Ended {
            id: child.to_string(),
            how: "it was deleted".to_owned(),
            ..Ended::default()
        };
    };
    let ending = vm.ending.as_ref();
    Ended {
        name: vm.name.clone(),
        id: child.to_string(),
        code: ending.and_then(|ending| ending.exit_code),
        how: ending.map_or_else(|| vm.reason.clone(), |ending| ending.detail.clone()),
        error: String::new(),
    }
}
