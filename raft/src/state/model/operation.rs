//! Operations: captures, forks, what goes back and what moves.

use std::collections::BTreeMap;

use super::{CaptureMode, Millis};
use crate::state::ids::{NodeId, OperationId, SnapshotId, VmId};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Captures a VM.
    Snapshot,
    /// Forks a VM or a snapshot.
    Fork,
    /// Sets a VM to the moment of a snapshot, or lets a suspended one go on. Its one result is the VM's.
    Reset,
    /// Captures a VM to disk and ends its process. Its one result is the VM's.
    Suspend,
    /// Has a VM go on on another node. Its one result is the VM's.
    Move,
}

/// How an operation is. The first end wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationState {
    /// Under way.
    Open,
    /// Done; single children may have failed.
    Complete,
    /// Not done; nothing of it is left.
    Failed {
        /// Why.
        reason: String,
        /// Whether because it was cancelled.
        cancelled: bool,
    },
}

/// A piece of long work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// Whose it is: what comes of it is this one's.
    pub owner: String,
    /// What it does.
    pub kind: OperationKind,
    /// How it is.
    pub state: OperationState,
    /// The VM that is captured, reset or moved; `None` when a snapshot is forked.
    pub vm: Option<VmId>,
    /// The snapshot that is made, forked or gone back to.
    pub snapshot: SnapshotId,
    /// How to capture.
    pub mode: CaptureMode,
    /// How many results: a fork's children, whose ids are [`OperationId::child`] of 0 to `count - 1`, or the one of a VM that is
    /// reset, suspended or moved.
    pub count: u32,
    /// Whether a VM that is reset is left standing still.
    pub paused: bool,
    /// What became of each, by its number; absent while it is not known.
    pub results: BTreeMap<u32, ChildResult>,
    /// The node that does it. Of a move, where the VM lives: the node that gives it away, then the one that has it.
    pub node: NodeId,
    /// Where a VM is moved to.
    pub to: Option<NodeId>,
    /// When it was asked for.
    pub created_at: Millis,
    /// After this a node that has not begun with it (or was away in the middle of it) gives it up.
    pub expires_at: Millis,
    /// When it ended.
    pub ended_at: Option<Millis>,
    /// Whether somebody asked to give it up.
    pub cancel_requested: bool,
    /// The first of the forks that a group's fork is made of, one for each member: they begin, are captured and end together. `None` for
    /// what is no part of one.
    pub group: Option<OperationId>,
}

impl Operation {
    /// Whether a move cannot be given up any more: the VM lives where it was moved to.
    pub fn has_arrived(&self) -> bool {
        self.kind == OperationKind::Move && self.to == Some(self.node)
    }
}

/// What became of a child, or of a VM that is reset, suspended or moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChildResult {
    /// From the operation's beginning on its node to `cont` having returned, microseconds. Of a VM that was moved, how long it stood still:
    /// from `stop` on the node that it left; 0 where it did not, and where nobody knows.
    pub running_us: u64,
    /// From the same moment to the guest having become itself, microseconds; 0 while that is not known.
    pub ready_us: u64,
    /// Why it failed; empty when it did not.
    pub error: String,
    /// Whether a VM whose reset or move failed had given way already: it is not as it was before, and has to be started anew.
    pub gave_way: bool,
    /// Steps of becoming itself that failed, with the reasons.
    pub failed_steps: Vec<String>,
}
