//! Kinds of events, and the words for them, which users filter by.

use std::fmt;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What happened. The words are a contract: what they are about, a point, and what became of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum EventKind {
            $($(#[$doc])* $name,)*
        }

        impl EventKind {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its word.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// The cluster was founded.
    ClusterFounded = "cluster.founded",
    /// All members write a newer form of records.
    ClusterUpgraded = "cluster.upgraded",
    /// The authority is being replaced: the new one's key goes to all nodes.
    AuthoritySpreading = "authority.spreading",
    /// The new authority signs.
    AuthorityRenewing = "authority.renewing",
    /// Only the new authority is trusted.
    AuthorityFinished = "authority.finished",
    /// Somebody said that the old authority's key is in wrong hands.
    AuthorityCompromised = "authority.compromised",
    /// A join token was made.
    TokenCreated = "token.created",
    /// A newcomer was let in by it.
    TokenUsed = "token.used",
    /// It can be used no more: its newcomer is there, it was revoked, or it ended.
    TokenEnded = "token.ended",
    /// A certificate was made.
    CertificateIssued = "certificate.issued",
    /// It was revoked.
    CertificateRevoked = "certificate.revoked",
    /// It has ended, and is not kept any more.
    CertificateEnded = "certificate.ended",
    /// What an owner may have was said.
    QuotaSet = "quota.set",
    /// An owner may have as much as there is.
    QuotaDeleted = "quota.deleted",
    /// A host was let in.
    NodeJoined = "node.joined",
    /// Its agent has started for the first time.
    NodeStarted = "node.started",
    /// It is reached elsewhere.
    NodeMoved = "node.moved",
    /// Its labels are other ones.
    NodeLabelled = "node.labelled",
    /// Nothing new is placed there.
    NodeCordoned = "node.cordoned",
    /// It takes new VMs again, and is not drained.
    NodeUncordoned = "node.uncordoned",
    /// Its VMs are moved to others, or suspended.
    NodeDraining = "node.draining",
    /// It is being drained, and no VM is left there, or none that runs.
    NodeDrained = "node.drained",
    /// It said something new of itself: what it has, or which certificate.
    NodeChanged = "node.changed",
    /// It was removed, or forgotten because it never came.
    NodeRemoved = "node.removed",
    /// A client's lease was made.
    LeaseCreated = "lease.created",
    /// It ended, and what was kept by it goes.
    LeaseEnded = "lease.ended",
    /// An image was imported.
    ImageImported = "image.imported",
    /// Another node has its files.
    ImageHeld = "image.held",
    /// More may see it.
    ImageShared = "image.shared",
    /// Fewer may see it.
    ImageUnshared = "image.unshared",
    /// Something else of it changed.
    ImageChanged = "image.changed",
    /// It was deleted.
    ImageDeleted = "image.deleted",
    /// A VM was made, and placed on a node.
    VmCreated = "vm.created",
    /// It is to be otherwise: running, paused, stopped.
    VmWanted = "vm.wanted",
    /// It is being started.
    VmStarting = "vm.starting",
    /// It runs.
    VmRunning = "vm.running",
    /// It stands still.
    VmPaused = "vm.paused",
    /// It has no process, as it should be or because its guest powered off.
    VmStopped = "vm.stopped",
    /// It ended in an unforeseen way, or could not be started.
    VmFailed = "vm.failed",
    /// Its moment is on disk, and it has no process.
    VmSuspended = "vm.suspended",
    /// It ended, and is started again.
    VmRestarting = "vm.restarting",
    /// It was set to a moment, or goes on from the one that it was suspended at.
    VmReset = "vm.reset",
    /// It lives on another node.
    VmMoved = "vm.moved",
    /// Its node was lost, and it goes on elsewhere from an earlier moment.
    VmRestored = "vm.restored",
    /// It could not be moved from its node, which is drained.
    VmStays = "vm.stays",
    /// Steps of becoming itself failed in it.
    VmUnready = "vm.unready",
    /// More may see it.
    VmShared = "vm.shared",
    /// Fewer may see it.
    VmUnshared = "vm.unshared",
    /// How long it is kept was said.
    VmKept = "vm.kept",
    /// Something else of it changed.
    VmChanged = "vm.changed",
    /// It was deleted.
    VmDeleted = "vm.deleted",
    /// A VM is being captured.
    SnapshotBegun = "snapshot.begun",
    /// It can be forked.
    SnapshotReady = "snapshot.ready",
    /// It has a name, or another one.
    SnapshotNamed = "snapshot.named",
    /// It has no name any more, and goes with the last that depends on it.
    SnapshotUnnamed = "snapshot.unnamed",
    /// Another node has its files.
    SnapshotHeld = "snapshot.held",
    /// A node does not have its files any more.
    SnapshotLost = "snapshot.lost",
    /// It survives a reboot of its host.
    SnapshotSecured = "snapshot.secured",
    /// How many forks of it are kept ready was said.
    SnapshotWarmed = "snapshot.warmed",
    /// More may see it.
    SnapshotShared = "snapshot.shared",
    /// Fewer may see it.
    SnapshotUnshared = "snapshot.unshared",
    /// How long it is kept was said.
    SnapshotKept = "snapshot.kept",
    /// Something else of it changed.
    SnapshotChanged = "snapshot.changed",
    /// It was deleted, or its capture came to nothing.
    SnapshotDeleted = "snapshot.deleted",
    /// An operation was begun.
    OperationBegun = "operation.begun",
    /// More of it is done.
    OperationProgressed = "operation.progressed",
    /// Somebody asked to give it up.
    OperationCancelling = "operation.cancelling",
    /// It is done.
    OperationComplete = "operation.complete",
    /// It failed.
    OperationFailed = "operation.failed",
    /// A map was left to the cluster.
    MapStarted = "map.started",
    /// A node has begun to drive it.
    MapDriven = "map.driven",
    /// Each of its items has a result.
    MapFinished = "map.finished",
    /// Somebody cancelled it.
    MapCancelled = "map.cancelled",
    /// It could not be gone on with.
    MapFailed = "map.failed",
    /// It was deleted, or has been kept for long enough.
    MapDeleted = "map.deleted",
}

impl EventKind {
    /// Whether somebody who filters by this text wants it: the word, or what is before its point.
    pub fn is_meant_by(self, text: &str) -> bool {
        let word = self.word();
        word == text || word.split_once('.').is_some_and(|(about, _)| about == text)
    }

    /// Whether it tells with whom something is shared.
    pub(super) fn is_about_sharing(self) -> bool {
        matches!(
            self,
            Self::ImageShared
                | Self::ImageUnshared
                | Self::VmShared
                | Self::VmUnshared
                | Self::SnapshotShared
                | Self::SnapshotUnshared
        )
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}
