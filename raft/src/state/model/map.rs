//! Maps that are left to the cluster: what is asked, how far it has come, and who drives it.

use std::sync::Arc;

use super::Millis;
use crate::state::{
    command::Constraints,
    ids::{CertificateId, LeaseId, MapId, NodeId, OperationId, SnapshotId},
    model::Role,
    owners::Ownership,
    shared_map::SharedMap,
};

/// A program that is run in forks of one moment, each with an item of its own, by whichever node drives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Its id.
    pub id: MapId,
    /// Its name, unique among its owner's.
    pub name: Option<String>,
    /// Whose it is; it is shared with nobody.
    pub ownership: Ownership,
    /// With which certificate it was asked for: its driver may do what that allows. `None` for the Unix socket.
    pub asker: Option<MapAsker>,
    /// What is asked. The items' input goes when it has ended.
    pub job: Arc<MapJob>,
    /// The moment that is forked: it stays while the map runs.
    pub snapshot: SnapshotId,
    /// The capture of that, where a VM was named.
    pub operation: Option<OperationId>,
    /// The node that drives it; `None` when it has ended, or while there is none that could.
    pub driver: Option<NodeId>,
    /// Which drive this is: who drives says it, and is not heard with an earlier one.
    pub epoch: u64,
    /// How often a node began to drive it.
    pub drives: u64,
    /// When its driver was chosen.
    pub placed_at: Millis,
    /// What the driver's forks are kept by; `None` until that has begun.
    pub lease: Option<LeaseId>,
    /// Results in the order in which they were accepted, counted from 0.
    pub results: SharedMap<u32, Arc<MapResult>>,
    /// Where the result of each item is that has one.
    pub done: SharedMap<u32, u32>,
    /// What the results' outputs take, bytes.
    pub output_bytes: u64,
    /// What came of the program that was run over all results.
    pub reduced: Option<Arc<MapResult>>,
    /// How it is.
    pub state: MapState,
    /// What its driver waits for; empty when nothing.
    pub note: String,
    /// How long it is kept after its end.
    pub kept_for: Millis,
    /// When it was asked for.
    pub created_at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
}

/// How a map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapState {
    /// It is being driven, or waits for that.
    Running,
    /// Each item has its result.
    Finished,
    /// Somebody cancelled it.
    Cancelled,
    /// It could not be gone on with.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A certificate that a map was asked for with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapAsker {
    /// Its serial number.
    pub certificate: CertificateId,
    /// Whose.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it ends.
    pub expires_at: Millis,
}

/// What a map is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapJob {
    /// What is forked, as it was asked for.
    pub source: String,
    /// How many items.
    pub count: u32,
    /// What each item's program reads, one for each; none where nothing is read.
    pub inputs: Vec<Vec<u8>>,
    /// The program and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// NAME=VALUE.
    pub env: Vec<String>,
    /// The user that it runs as.
    pub user: String,
    /// How long it may take, milliseconds.
    pub limit: Option<Millis>,
    /// How often an item is done again.
    pub retries: u32,
    /// How many run at once; 0 for no number.
    pub parallel: u32,
    /// How long forks stay of a driver that is gone.
    pub lease_ttl: Millis,
    /// The node that forks live on; empty where that is not said.
    pub node: String,
    /// Whether they go over all nodes.
    pub spread: bool,
    /// Which nodes may take them.
    pub constraints: Constraints,
    /// A shell's command line that is run over all results.
    pub reduce: Option<String>,
}

/// What came of an item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapResult {
    /// Its number, from 0.
    pub index: u32,
    /// As a shell has it; `None` where its program could not be run to its end.
    pub exit_code: Option<u8>,
    /// What that does not say.
    pub error: String,
    /// What it printed, as much as is kept.
    pub stdout: Vec<u8>,
    /// The same.
    pub stderr: Vec<u8>,
    /// Whether it printed more.
    pub truncated: bool,
    /// Its fork's name.
    pub vm: String,
    /// The name of the node where that was.
    pub node: String,
    /// How often it was begun by the driver that had its result.
    pub attempts: u32,
    /// How long its program ran, microseconds.
    pub took_us: u64,
}

impl MapJob {
    /// What it takes, bytes.
    pub fn bytes(&self) -> u64 {
        let words = self.inputs.iter().chain(&self.argv).map(Vec::len);
        let texts = self.env.iter().map(String::len);
        let rest = [&self.source, &self.user, &self.node].map(String::len);
        let reduce = self.reduce.as_ref().map_or(0, String::len);
        words.chain(texts).chain(rest).sum::<usize>() as u64 + reduce as u64
    }
}

impl MapResult {
    /// What its outputs take, bytes.
    pub fn output_bytes(&self) -> u64 {
        (self.stdout.len() + self.stderr.len()) as u64
    }

    /// Whether all went well.
    pub fn is_good(&self) -> bool {
        self.exit_code == Some(0) && self.error.is_empty()
    }
}

impl Map {
    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.state == MapState::Running
    }

    /// Whether a node drives it with this number.
    pub fn is_driven_by(&self, node: NodeId, epoch: u64) -> bool {
        self.is_running() && self.driver == Some(node) && self.epoch == epoch
    }

    /// When it is forgotten.
    pub fn kept_until(&self) -> Option<Millis> {
        self.ended_at.map(|end| end.saturating_add(self.kept_for))
    }

    /// Results that are not good.
    pub fn failures(&self) -> impl Iterator<Item = &Arc<MapResult>> {
        self.results.values().filter(|one| !one.is_good())
    }
}
