//! What a command is answered with.

use std::fmt;

use super::ids::{CertificateId, ImageId, LeaseId, MapId, NodeId, OperationId, SnapshotId, VmId};

/// What became of a command.
pub type Outcome = Result<Response, Rejection>;

/// What an accepted command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// There is nothing more to say.
    Done,
    /// This node was added or changed.
    Node(NodeId),
    /// This node was removed.
    DeletedNode(NodeId),
    /// This image was added.
    Image(ImageId),
    /// This VM was added or changed.
    Vm(VmId),
    /// This VM was deleted; its tombstone stays until its node has done it.
    DeletedVm(VmId),
    /// This snapshot was changed.
    Snapshot(SnapshotId),
    /// This snapshot was deleted.
    DeletedSnapshot(SnapshotId),
    /// This operation was begun or changed.
    Operation(OperationId),
    /// This certificate was noted, or made useless.
    Certificate(CertificateId),
    /// This lease was added or renewed.
    Lease(LeaseId),
    /// This lease has ended, and what was kept by it goes.
    EndedLease(LeaseId),
    /// This map was begun or changed.
    Map(MapId),
    /// This map was deleted.
    DeletedMap(MapId),
}

/// What kind of object a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node.
    Node,
    /// A join token.
    Token,
    /// An image.
    Image,
    /// A VM.
    Vm,
    /// A snapshot.
    Snapshot,
    /// An operation.
    Operation,
    /// A certificate.
    Certificate,
    /// An owner's quota.
    Quota,
    /// The authority, or its replacement.
    Authority,
    /// A client's lease.
    Lease,
    /// A group of VMs.
    Group,
    /// A map that is left to the cluster.
    Map,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Node => "node",
            Self::Token => "join token",
            Self::Image => "image",
            Self::Vm => "VM",
            Self::Snapshot => "snapshot",
            Self::Operation => "operation",
            Self::Certificate => "certificate",
            Self::Quota => "quota of owner",
            Self::Authority => "authority",
            Self::Lease => "lease",
            Self::Group => "group",
            Self::Map => "map",
        })
    }
}

/// Why a command was refused. The state is as it was before. In every variant `kind` and `name` are the object's as the
/// user named it, `field` is the request's field in camel case, and `problem` goes on a sentence.
#[allow(missing_docs)] // The fields are as said above, the others in their variant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A field can never be right.
    #[error("{field}: {problem}")]
    InvalidField { field: String, problem: String },
    /// There is no such object.
    #[error("there is no {kind} {name:?}")]
    NotFound { kind: Kind, name: String },
    /// It is not there any more: it was given up with the node that it was on.
    #[error("there is no {kind} {name:?} any more: it was given up when node {node} was removed")]
    GivenUp {
        kind: Kind,
        name: String,
        node: String,
    },
    /// An id prefix fits several objects: some of their names or ids.
    #[error("{name:?} fits more than one {kind}: {matches:?}")]
    Ambiguous {
        kind: Kind,
        name: String,
        matches: Vec<String>,
    },
    /// The name is taken.
    #[error("{kind} {name:?} is there already")]
    NameTaken { kind: Kind, name: String },
    /// It can be seen, but it is another owner's.
    #[error(
        "{kind} {name:?} belongs to another owner, who shares it: only that one and administrators may do this"
    )]
    NotOwner { kind: Kind, name: String },
    /// Something depends on it: some of the dependents, each with its kind.
    #[error("{kind} {name:?} is in use by {dependents:?}")]
    InUse {
        kind: Kind,
        name: String,
        dependents: Vec<String>,
    },
    /// It makes no sense in the object's state.
    #[error("{kind} {name:?} {problem}")]
    WrongState {
        kind: Kind,
        name: String,
        problem: String,
    },
    /// So many of those that were wanted fit nowhere: one line for each node that was considered, the most telling first. Or a family of VMs is
    /// as large as it may be: one line.
    #[error("cannot place {short} of {wanted}: {}", reasons.join(", "))]
    NoCapacity {
        short: u32,
        wanted: u32,
        reasons: Vec<String>,
    },
    /// There are not so many nodes that can hold a copy: how many can, then one line for each that cannot.
    #[error("cannot keep {wanted} copies: {}", reasons.join("; "))]
    TooFewNodes { wanted: u32, reasons: Vec<String> },
    /// An owner would have more than it may: one line for each kind of thing.
    #[error("owner {owner:?} may not have so much: {}", exceeded.join("; "))]
    OverQuota {
        owner: String,
        exceeded: Vec<String>,
    },
    /// The request id was used with another body.
    #[error("request id {id:?} was used before with another body")]
    RequestIdReused { id: String },
    /// The token is unknown, used up or ended.
    #[error("the join token is unknown, used or expired")]
    BadToken,
}
