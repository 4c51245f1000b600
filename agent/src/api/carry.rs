//! Calls that are streams both ways and belong to the node that has the VM: taking their first message, carrying them there, and ending
//! them when the VM is there for their caller no more.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, future::BoxFuture};
use raft::state::{Actor, Kind, NodeId, Owned as _, Rejection, Vm, VmId, names};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Response, Status, Streaming};

use super::Api;
use crate::{audit, convert, errors::ApiError, guest::Unheard};

/// What a call is answered with.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a call carries to another node.
pub type Requests<T> = ReceiverStream<T>;

/// A call that is being made to another node.
pub type Answering<T> = BoxFuture<'static, Result<Response<Streaming<T>>, Status>>;

/// How long the first message of a call may take to come.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// Messages that are carried ahead of a node that does not take them.
const AHEAD: usize = 4;

/// The message that says what a call is about.
pub(super) async fn first<T>(inputs: &mut Streaming<T>) -> Result<T, Status> {
    match timeout(FIRST_PATIENCE, inputs.message()).await {
        Ok(first) => {
            first?.ok_or_else(|| Status::invalid_argument("the first message names the VM"))
        }
        Err(_) => Err(Status::deadline_exceeded(
            "the message that names the VM did not come",
        )),
    }
}

/// What a node says, or that the connection to it broke: a status with a source was made on this side.
fn cut(status: Status, node: &str) -> Status {
    if std::error::Error::source(&status).is_none() {
        return status;
    }
    tracing::debug!(node, %status, "a call that was carried to another node broke");
    let problem = "the connection to it broke".to_owned();
    let node = node.to_owned();
    ApiError::NodeOffline { node, problem }.into()
}

/// A VM, as far as working with it goes.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Its id.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub node: NodeId,
}

impl Found {
    /// What is wrong with its guest's agent, as an answer.
    pub fn unheard(&self, problem: Unheard) -> ApiError {
        ApiError::Guest {
            vm: self.name.clone(),
            problem,
        }
    }
}

impl Api {
    /// Carries a call to another node: `call` makes it there, with these requests.
    pub(super) async fn carry<Q: Send + 'static, A: Send + 'static>(
        &self,
        node: NodeId,
        first: Q,
        mut inputs: Streaming<Q>,
        call: impl FnOnce(Requests<Q>) -> Answering<A>,
    ) -> Result<Answers<A>, Status> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        // There is room for it.
        let _kept = sender.try_send(first);
        let node = convert::node_name(&self.node.state(), node);
        let called = call(ReceiverStream::new(receiver)).await;
        let outputs = called.map_err(|status| cut(status, &node))?.into_inner();
        // By itself: it goes on while the caller does not read. It ends with either side, and with the stream that the caller reads.
        let carrying = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok(Some(next)) = inputs.message().await {
                if sender.send(next).await.is_err() {
                    return;
                }
            }
        }));
        let outputs = outputs.map(move |output| {
            let _as_long_as_this = &carrying;
            output.map_err(|status| cut(status, &node))
        });
        Ok(outputs.boxed())
    }

    /// The VM that is meant, as this node knows it; the cluster is asked only when it does not: whoever works in a VM does not wait for
    /// that each time. A VM that has gone meanwhile is not found where it was.
    pub(super) async fn find_vm(
        &self,
        by: &Actor,
        vm: &str,
        deadline: Instant,
    ) -> Result<Found, ApiError> {
        audit::about(|| format!("VM {vm}"));
        let found = |vm: &Vm| Found {
            vm: vm.id,
            name: vm.name.clone(),
            node: vm.node,
        };
        if let Ok(vm) = names::vm(&self.node.state(), by, vm) {
            return Ok(found(vm));
        }
        let state = self.read(deadline).await?;
        Ok(found(names::vm(&state, by, vm)?))
    }

    /// Answers about a VM, until that is there for their caller no more: what others share they may stop to share.
    pub(super) fn while_seen<T: Send + 'static>(
        &self,
        by: &Actor,
        vm: VmId,
        mut answers: Answers<T>,
    ) -> Answers<T> {
        let state = self.node.state();
        // One that is gone ends its streams by itself, and its owner stays its owner.
        let shared = state.vms.get(&vm);
        let Some(shared) = shared.filter(|vm| !vm.ownership.is_ruled_by(by)) else {
            return answers;
        };
        let hidden = Status::from(ApiError::from(Rejection::NotFound {
            kind: Kind::Vm,
            name: shared.name_for(by),
        }));
        let (mut published, by) = (self.node.raft.published(), by.clone());
        let (sender, receiver) = mpsc::channel(AHEAD);
        // By itself: who does not read is cut off, too.
        let passing = AbortOnDropHandle::new(tokio::spawn(async move {
            let is_hidden = |vm: &Arc<Vm>| !vm.ownership.is_seen_by(&by);
            let stopped = published.wait_for(|now| now.view.vms.get(&vm).is_some_and(is_hidden));
            let is_cut = tokio::select! {
                stopped = stopped => stopped.is_ok(),
                () = pass(&mut answers, &sender) => false,
            };
            // What it works with goes with them.
            drop(answers);
            if is_cut {
                // Whoever called may be gone.
                let _gone = sender.send(Err(hidden)).await;
            }
        }));
        let answers = ReceiverStream::new(receiver).inspect(move |_| {
            let _as_long_as_this = &passing;
        });
        answers.boxed()
    }
}

/// Passes answers on until they end, or nobody takes them.
async fn pass<T>(answers: &mut Answers<T>, to: &mpsc::Sender<Result<T, Status>>) {
    while let Some(next) = answers.next().await {
        if to.send(next).await.is_err() {
            return;
        }
    }
}
