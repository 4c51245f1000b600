//! One node as a whole: what its parts (API, reconciler, forks, peers) have in common.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use metrics_exporter_prometheus::PrometheusHandle;
use raft::{
    node::{Handle, ProposeError},
    state::{
        Actor, Candidate, ClusterId, Command, GuestAgent, ImageId, Millis, NodeId, Outcome,
        Proposal, Rejection, RequestKey, State, Vm, VmId,
    },
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::Reserves,
    audit::Audit,
    clock::{self, Clock},
    density::Density,
    guest::{Introduction, identity, ports::Ports},
    leases::Leases,
    metrics,
    peers::Peers,
    secrets::Secrets,
    store::Store,
    switch::Switch,
    transfer::Transfers,
    trust::{authority::Authority, identity::Identity, tls::own::OwnCertificate},
    vms::{Vms, fork::Forks, launch::Fitness, pool::Pool},
};

/// How long a node tries at once to tell the cluster something before it waits and tries again.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// Between two such tries.
const REPORT_PAUSE: Duration = Duration::from_millis(200);
/// How long a node that has just started waits for the cluster's time before nobody is taken to lead.
const TIME_PATIENCE: Duration = Duration::from_secs(2);

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Who it is.
    pub identity: Identity,
    /// The authority that it signs with.
    pub signing: RwLock<Arc<Authority>>,
    /// What it shows of itself, and whom it trusts.
    pub own: Arc<OwnCertificate>,
    /// Taken by who begins to replace the authority.
    pub replacing: tokio::sync::Mutex<()>,
    /// Who asked for what.
    pub audit: Arc<Audit>,
    /// What was measured.
    pub metrics: PrometheusHandle,
    /// The replicated state.
    pub raft: Handle,
    /// Its VMs.
    pub vms: Arc<Vms>,
    /// Its VMs' published ports.
    pub ports: Ports,
    /// The networks of its groups.
    pub switch: Switch,
    /// How its host's memory is.
    pub density: Density,
    /// What is kept back of the host for itself.
    pub reserves: Reserves,
    /// The files of its snapshots.
    pub store: Store,
    /// Its forks.
    pub forks: Forks,
    /// Its forks that are ready before anybody asks.
    pub pool: Pool,
    /// What only guests of its forks may know.
    pub secrets: Secrets,
    /// What it can run.
    pub fitness: Fitness,
    /// Whether its kernel tracks writes, and if not, why.
    pub write_tracking: Result<(), String>,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// Who is there.
    pub leases: Leases,
    /// The cluster's time.
    pub clock: Arc<Clock>,
    /// `qemu-img`.
    pub qemu_img: PathBuf,
    /// User and group of programs that look at what users bring.
    pub helper_user: Option<(u32, u32)>,
    /// Files that come from other nodes and go to them.
    pub transfers: Transfers,
    /// Images that are being fetched.
    pub fetching: Mutex<BTreeSet<ImageId>>,
    /// Whether a report is on its way.
    pub reporting: AtomicBool,
    /// How many images are being imported: their files are whole before anything refers to them.
    pub importing: AtomicUsize,
    /// Whether files are being collected.
    pub collecting: AtomicBool,
    /// Rung when there may be something to reconcile.
    pub wake: Arc<Notify>,
    /// Rung when files may have been left that nothing refers to.
    pub left_over: Notify,
    /// Ends everything.
    pub cancel: CancellationToken,
    /// Everything that runs.
    pub tasks: TaskTracker,
    /// How long a newcomer may take until its agent starts.
    pub newcomer_patience: Duration,
    /// How long another node is silent before forks and captures go on without it.
    pub lost_after: Duration,
    /// When the agent started.
    pub started_at: SystemTime,
}

/// An import under way. See [`Node::begin_import`].
#[derive(Debug)]
pub struct Importing<'a>(&'a AtomicUsize);

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Node {
    /// Its number.
    pub fn id(&self) -> NodeId {
        self.identity.node
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(self.identity.cluster.0)
    }

    /// The cluster's time, as commands carry it.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// Notes, if this node leads, what its own clock says.
    pub fn hear_own_clock(&self) {
        let status = self.raft.status();
        if status.leader == Some(self.id()) {
            let says = clock::of_host();
            self.clock.hear(self.id(), says, &status.voters);
        }
    }

    /// The authority that it signs with now.
    pub fn authority(&self) -> Arc<Authority> {
        // It is changed whole.
        Arc::clone(&self.signing.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Signs with another one from here on.
    pub fn set_authority(&self, authority: Authority) {
        *self.signing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
    }

    /// Has connections to the other nodes made anew, because what this one shows has changed. What is under way on them goes on.
    pub fn redial(&self) {
        self.peers.redial();
        self.raft.redial();
    }

    /// The replicated state as this node has it now.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.raft.published().borrow().view)
    }

    /// Proposes a change that the cluster makes of itself.
    pub async fn propose(
        &self,
        request: Option<RequestKey>,
        command: Command,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        self.propose_for(&Actor::cluster(), request, command, deadline)
            .await
    }

    /// Proposes a change on somebody's behalf.
    pub async fn propose_for(
        &self,
        by: &Actor,
        request: Option<RequestKey>,
        command: Command,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        // A leader that has heard a majority tells it. Who founds a cluster is its only voter, and before all others.
        if !matches!(command, Command::Found { .. }) {
            self.hear_own_clock();
            let until = deadline.min(Instant::now() + TIME_PATIENCE);
            if timeout_at(until, self.clock.known()).await.is_err() {
                return Err(ProposeError::no_leader());
            }
        }
        let proposal = Proposal {
            request,
            by: by.clone(),
            now: self.now(),
            command,
        };
        let begun = Instant::now();
        let outcome = self.raft.propose(&proposal, deadline).await;
        if outcome.is_ok() {
            metrics::commit(begun.elapsed());
        }
        outcome
    }

    /// Proposes a change of the cluster's own, once, if this node leads.
    pub async fn propose_leading(&self, command: Command) -> Result<Outcome, ProposeError> {
        let proposal = Proposal {
            request: None,
            by: Actor::cluster(),
            now: self.now(),
            command,
        };
        self.raft.propose_leading(&proposal).await
    }

    /// Tells the cluster a fact, however long it takes until it has a leader. Given up only when the agent ends: then the next
    /// one finds the fact again. A refusal means that the fact is no news, or too late.
    pub async fn report(&self, command: Command) -> Option<Result<(), Rejection>> {
        loop {
            let deadline = Instant::now() + REPORT_PATIENCE;
            let attempt = async {
                match self.propose(None, command.clone(), deadline).await {
                    Ok(outcome) => Some(outcome),
                    Err(error) => {
                        tracing::debug!(%error, "a report did not get through yet");
                        sleep(REPORT_PAUSE).await;
                        None
                    }
                }
            };
            tokio::select! {
                () = self.cancel.cancelled() => return None,
                outcome = attempt => if let Some(outcome) = outcome {
                    if let Err(rejection) = &outcome {
                        tracing::debug!(%rejection, "a report was refused");
                    }
                    return Some(outcome.map(|_| ()));
                }
            }
        }
    }

    /// Waits until the state, as this node has it, fits. `None` when the deadline passes first.
    pub async fn wait_for<T>(
        &self,
        deadline: Instant,
        mut fits: impl FnMut(&Arc<State>) -> Option<T>,
    ) -> Option<T> {
        let mut published = self.raft.published();
        let search = async {
            loop {
                let state = Arc::clone(&published.borrow_and_update().view);
                if let Some(found) = fits(&state) {
                    return Some(found);
                }
                if published.changed().await.is_err() {
                    return None;
                }
            }
        };
        timeout_at(deadline, search).await.ok().flatten()
    }

    /// Has a VM's guest be told who it is in this boot of it, if it is here.
    pub fn introduce(&self, state: &State, vm: &Vm, boot: u64) {
        let Some(handle) = self.vms.get(vm.id) else {
            return;
        };
        let secrets = vm
            .operation
            .filter(|_| vm.has_secrets)
            .and_then(|operation| self.secrets.get(operation));
        let identity = identity::identity(state, vm, boot, secrets.as_deref());
        let agent = state
            .images
            .get(&vm.spec.image)
            .map(|image| image.guest_agent);
        handle.guest().introduce(Introduction {
            identity,
            is_qemu: agent == Some(GuestAgent::Qemu),
        });
    }

    /// The nodes that can be given work, as far as this node knows: those that renewed their leases. Of itself it knows best what is free.
    pub fn candidates(&self) -> Vec<Candidate> {
        let mut all = self.leases.candidates().unwrap_or_default();
        if let Some(own) = all.iter_mut().find(|one| one.node == self.id()) {
            own.room = self.room();
        }
        all
    }

    /// Takes the turn to send a report; `false` while another is on its way.
    pub fn begin_report(&self) -> bool {
        !self.reporting.swap(true, Ordering::AcqRel)
    }

    /// Gives the turn back, and has the reconciler look again.
    pub fn end_report(&self) {
        self.reporting.store(false, Ordering::Release);
        self.wake.notify_one();
    }

    /// Takes the turn to collect files; `false` while they are being collected.
    pub fn begin_collection(&self) -> bool {
        !self.collecting.swap(true, Ordering::AcqRel)
    }

    /// Has image files left alone by collections until the result is dropped.
    pub fn begin_import(&self) -> Importing<'_> {
        self.importing.fetch_add(1, Ordering::AcqRel);
        Importing(&self.importing)
    }

    /// Gives the turn back.
    pub fn end_collection(&self) {
        self.collecting.store(false, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether an image's files are all here.
    pub fn has_image(&self, state: &State, image: ImageId) -> bool {
        let layout = &self.vms.engine().layout;
        state.images.get(&image).is_some_and(|image| {
            crate::images::blobs_of(image).all(|blob| crate::blobs::is_here(layout, &blob.sha256))
        })
    }

    /// Bytes that are free on the data directory's file system.
    pub fn free_bytes(&self) -> std::io::Result<u64> {
        qemu::host::free_bytes(self.vms.engine().layout.root())
    }

    /// What a node sees of a VM's process: its id.
    pub fn pid_of(&self, vm: VmId) -> u32 {
        self.vms.get(vm).map_or(0, |handle| handle.pid())
    }

    /// The images that are being fetched now.
    pub fn fetching(&self) -> BTreeSet<ImageId> {
        self.fetching
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
