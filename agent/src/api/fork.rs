//! Asking for forks and captures: telling the source's node ahead, waiting for the operation's end, and the answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::{
    peer::PrepareForkRequest,
    v1::{ForkRequest, ForkResponse, ForkedVm},
};
use raft::state::{
    Actor, Candidate, CaptureMode, Command, Constraints, ForkSource, Kind, MAX_CHILDREN, Millis,
    NodeId, Operation, OperationId, OperationState, Placing, Rejection, Response, State, Wanted,
    names, places_of_fork,
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use ulid::Ulid;

use super::{Api, forked, request_key, unexpected};
use crate::{
    admission::{NO_DISK, NO_MEMORY},
    audit, convert,
    errors::ApiError,
    secrets,
    vms::fork::Source,
};

/// How long an operation may wait for its node: one that was away longer gives it up.
const OPERATION_PATIENCE: Duration = Duration::from_secs(120);

/// Reads `VM`, `VM@SNAPSHOT` or `@SNAPSHOT`.
pub(super) fn fork_source(text: &str) -> Result<ForkSource, ApiError> {
    let snapshot = |snapshot: &str, vm: Option<&str>| ForkSource::Snapshot {
        snapshot: snapshot.to_owned(),
        vm: vm.map(str::to_owned),
    };
    match text.split_once('@') {
        None if text.is_empty() => {
            let problem = "name what to fork: VM, VM@SNAPSHOT or @SNAPSHOT".to_owned();
            Err(ApiError::InvalidField {
                field: "source",
                problem,
            })
        }
        None => Ok(ForkSource::Vm(text.to_owned())),
        Some((_, "")) => {
            let problem = "name the snapshot after the @".to_owned();
            Err(ApiError::InvalidField {
                field: "source",
                problem,
            })
        }
        Some(("", name)) => Ok(snapshot(name, None)),
        Some((vm, name)) => Ok(snapshot(name, Some(vm))),
    }
}

/// Where a request's forks are to go.
fn placing(request: &ForkRequest, constraints: &Constraints) -> Result<Placing, ApiError> {
    match (request.node.as_str(), request.spread) {
        ("", false) if constraints.is_empty() => Ok(Placing::WithSource),
        ("", false) => Ok(Placing::Near),
        ("", true) => Ok(Placing::Spread),
        (node, false) => Ok(Placing::On(node.to_owned())),
        (_, true) => Err(ApiError::InvalidField {
            field: "spread",
            problem: "forks are spread over all nodes or go to one: say either".to_owned(),
        }),
    }
}

/// Where what is forked is, as a state has it: of a snapshot, one of the nodes that hold it and are there.
fn located(
    state: &State,
    by: &Actor,
    source: &ForkSource,
    candidates: &[Candidate],
) -> Result<(NodeId, Source), Rejection> {
    match source {
        ForkSource::Vm(name) => {
            let vm = names::vm(state, by, name)?;
            Ok((vm.node, Source::Vm(vm.id)))
        }
        ForkSource::Snapshot { snapshot, vm } => {
            let found = names::snapshot_of(state, by, snapshot, vm.as_deref())?;
            let mut holders = found.nodes.iter();
            let online = |node: &NodeId| candidates.iter().any(|one| one.node == *node);
            let holder = holders.find(|node| online(node));
            let node = holder
                .or(found.nodes.first())
                .ok_or_else(|| Rejection::WrongState {
                    kind: Kind::Snapshot,
                    name: snapshot.clone(),
                    problem: "is on no node".to_owned(),
                })?;
            Ok((*node, Source::Snapshot(found.id)))
        }
    }
}

impl Api {
    /// When an operation that begins now is given up.
    pub(super) fn expiry(&self) -> Millis {
        self.node.now() + OPERATION_PATIENCE.as_millis() as Millis
    }

    /// Carries a fork out and waits for its end. `by_guest`: whether a guest asks for its own VM, as far as that may.
    pub(super) async fn fork_as_asked(
        &self,
        by: &Actor,
        mut request: ForkRequest,
        by_guest: bool,
        arrived: Instant,
        deadline: Instant,
    ) -> Result<ForkResponse, ApiError> {
        self.has_room()?;
        let source = fork_source(&request.source)?;
        let life = self.life(request.keep.as_ref())?;
        let constraints = convert::constraints(request.constraints.clone());
        let placing = placing(&request, &constraints)?;
        let candidates = self.node.candidates();
        audit::about(|| forked(by, &source));
        let mode = convert::capture_mode(request.mode());
        // Out of the request before anything is made of it: nothing that is stored or sent depends on a secret.
        let given = secrets::take(std::mem::take(&mut request.secrets))?;
        let key = request_key(&request, |request| &mut request.request_id);
        let operation = OperationId::from_ulid(Ulid::new().0);
        let wanted = Wanted {
            by,
            labels: &request.labels,
            constraints: &constraints,
            candidates: &candidates,
            count: request.count,
        };
        let handed = match &given {
            Some(given) => Some(
                self.hand_ahead(by, &key, operation, given, deadline, |state| {
                    // A fork that will be refused is refused by who carries it out, under the request's id.
                    places_of_fork(state, &source, &placing, &wanted).or_else(|_| {
                        located(state, by, &source, &candidates).map(|(node, _)| vec![node])
                    })
                })
                .await?,
            ),
            None => None,
        };
        let told = match self.was_carried_out(by, &key) {
            true => BTreeMap::new(),
            false => self
                .prepare_fork(&source, operation, &placing, &wanted, mode)
                .unwrap_or_default(),
        };
        let command = Command::Fork {
            operation,
            source,
            count: request.count,
            name: Some(request.name).filter(|name| !name.is_empty()),
            mode,
            paused: request.paused,
            labels: request.labels,
            settings: request.settings,
            by_guest,
            has_secrets: given.is_some(),
            placing,
            constraints,
            candidates,
            life,
            expires_at: self.expiry(),
        };
        let id = match self.change(by, key, command, deadline).await? {
            Response::Operation(id) => id,
            other => return Err(unexpected(other)),
        };
        // When this node knew: those that nobody told ahead did at about that time.
        let committed = arrived.elapsed();
        if let (Some(given), Some(handed)) = (&given, handed) {
            let handed = handed.filter(|_| id == operation).unwrap_or_default();
            self.hand_to_its_nodes(id, &handed, given, deadline).await?;
        }
        let ended = self.ended_operation(id, deadline).await?;
        // When each node knew: its own times count from there.
        let mut ahead = BTreeMap::new();
        for (node, told) in told {
            if let Ok(at) = told.await {
                ahead.insert(node, (at - arrived).min(committed));
            }
        }
        let ahead = |node| ahead.get(&node).copied().unwrap_or(committed);
        Ok(self.fork_message(by, &ended, ahead))
    }

    /// Tells the source's node, and those that children go to, to begin with what may be done before the fork is sure, if this node knows
    /// where that is. Nothing depends on it. Gives the times at which they knew.
    fn prepare_fork(
        &self,
        source: &ForkSource,
        operation: OperationId,
        placing: &Placing,
        wanted: &Wanted<'_>,
        mode: CaptureMode,
    ) -> Option<BTreeMap<NodeId, oneshot::Receiver<Instant>>> {
        let state = self.node.state();
        let (node, found) = located(&state, wanted.by, source, wanted.candidates).ok()?;
        if !(1..=MAX_CHILDREN).contains(&wanted.count) {
            return None;
        }
        let places = places_of_fork(&state, source, placing, wanted).ok()?;
        let mut children = BTreeMap::from([(node, Vec::new())]);
        for (number, place) in (0..).zip(places) {
            children.entry(place).or_default().push(number);
        }
        let told = children.into_iter().map(|(node, children)| {
            let told = self.prepare(node, operation, found, children, mode);
            (node, told)
        });
        Some(told.collect())
    }

    /// The same, where the source is known.
    pub(super) fn prepare(
        &self,
        node: NodeId,
        operation: OperationId,
        source: Source,
        children: Vec<u32>,
        mode: CaptureMode,
    ) -> oneshot::Receiver<Instant> {
        let (told, when) = oneshot::channel();
        if node == self.node.id() {
            self.node
                .forks
                .prepare(&self.node, operation, source, children, mode);
            // The receiver is there: it is returned below.
            let _kept = told.send(Instant::now());
            return when;
        }
        let peers = Arc::clone(&self.node.peers);
        let request = PrepareForkRequest {
            operation: operation.to_string(),
            source: match source {
                Source::Vm(vm) => vm.to_string(),
                Source::Snapshot(snapshot) => format!("@{snapshot}"),
            },
            children,
            mode: match mode {
                CaptureMode::Auto => proto::v1::CaptureMode::Auto,
                CaptureMode::Paused => proto::v1::CaptureMode::Paused,
                CaptureMode::Live => proto::v1::CaptureMode::Live,
            }
            .into(),
        };
        self.node.tasks.spawn(async move {
            let Ok(mut client) = peers.client(node).await else {
                return;
            };
            match timeout(Duration::from_secs(2), client.prepare_fork(request)).await {
                // Whoever asked may be gone.
                Ok(Ok(_)) => drop(told.send(Instant::now())),
                Ok(Err(status)) => {
                    tracing::debug!(%status, "a node could not be told ahead of a fork")
                }
                Err(_) => tracing::debug!(node, "a node was not told in time of a fork"),
            }
        });
        when
    }

    /// Waits until an operation has ended, and gives it if it is complete.
    pub(super) async fn ended_operation(
        &self,
        id: OperationId,
        deadline: Instant,
    ) -> Result<Arc<Operation>, ApiError> {
        let ended = self
            .node
            .wait_for(deadline, |state| match state.operations.get(&id) {
                Some(operation) if operation.state == OperationState::Open => None,
                other => Some(other.cloned()),
            });
        let Some(found) = ended.await else {
            return Err(ApiError::Pending {
                what: format!("operation {id}"),
                operation: Some(id),
            });
        };
        let operation = found.ok_or_else(|| Rejection::NotFound {
            kind: Kind::Operation,
            name: id.to_string(),
        })?;
        match &operation.state {
            OperationState::Failed {
                cancelled: true, ..
            } => Err(ApiError::Cancelled),
            OperationState::Failed { reason, .. } => {
                let of = |what| reason.strip_prefix(what).map(str::to_owned);
                Err(match (of(NO_DISK), of(NO_MEMORY)) {
                    (Some(problem), _) => ApiError::DiskFull(problem),
                    (_, Some(problem)) => ApiError::NoMemory(problem),
                    (None, None) => ApiError::WorkFailed(reason.clone()),
                })
            }
            OperationState::Open | OperationState::Complete => Ok(operation),
        }
    }

    /// What is answered to a fork's request. `ahead`: how long after that a node knew of the operation.
    fn fork_message(
        &self,
        by: &Actor,
        operation: &Operation,
        ahead: impl Fn(NodeId) -> Duration,
    ) -> ForkResponse {
        let state = self.node.state();
        let children =
            (0..operation.count).map(|number| child_message(&state, by, operation, number, &ahead));
        let snapshot = state.snapshots.get(&operation.snapshot);
        let report = snapshot
            .and_then(|snapshot| Some(&snapshot.content.as_ref()?.report))
            .filter(|_| operation.vm.is_some());
        ForkResponse {
            operation: operation.id.to_string(),
            snapshot: operation.snapshot.to_string(),
            pause_ms: report.map_or(0.0, |report| convert::ms(report.pause_us)),
            children: children.collect(),
            capture: report.map(convert::report_message),
        }
    }
}

/// What became of a child. `ahead`: how long after the request a node knew of the operation.
pub(super) fn child_message(
    state: &State,
    by: &Actor,
    operation: &Operation,
    number: u32,
    ahead: &impl Fn(NodeId) -> Duration,
) -> ForkedVm {
    let id = operation.id.child(number);
    let result = operation.results.get(&number);
    let error = result.map_or_else(
        || "it was deleted".to_owned(),
        |result| result.error.clone(),
    );
    let node = state.node_of_child(operation, number);
    let since_arrival = |us: u64| convert::ms(us) + ahead(node).as_secs_f64() * 1e3;
    let (running_ms, ready_ms) = match result {
        Some(result) if result.error.is_empty() => {
            let ready = match result.ready_us {
                // Nobody says when it had become itself.
                0 => result.running_us,
                ready => ready,
            };
            (since_arrival(result.running_us), since_arrival(ready))
        }
        _ => (0.0, 0.0),
    };
    let vm = state.vms.get(&id);
    ForkedVm {
        id: id.to_string(),
        name: vm.map_or_else(String::new, |vm| vm.name.clone()),
        node: convert::node_name(state, node),
        state: vm
            .map_or(proto::v1::VmState::Unspecified, |vm| {
                convert::vm(state, by, vm, None, true).state()
            })
            .into(),
        running_ms,
        ready_ms,
        error,
        failed_steps: result.map_or_else(Vec::new, |result| result.failed_steps.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forked_is_read() {
        let source = |text: &str| fork_source(text).ok();
        assert_eq!(source("web"), Some(ForkSource::Vm("web".into())));
        let snapshot = |name: &str, vm: Option<&str>| {
            Some(ForkSource::Snapshot {
                snapshot: name.into(),
                vm: vm.map(str::to_owned),
            })
        };
        assert_eq!(source("@warm"), snapshot("warm", None));
        assert_eq!(source("web@warm"), snapshot("warm", Some("web")));
        assert_eq!((source(""), source("web@")), (None, None));
    }
}
