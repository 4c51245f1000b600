//! openraft's view of the state machine: applies what is committed, publishes the state, and keeps snapshots.

use std::{
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError,
    storage::RaftStateMachine,
};
use tokio::{sync::watch, task::spawn_blocking};

use super::{
    app::{App, AppError, Members, Published},
    snapshots::Snapshots,
    types::{
        Batch, Entry, LogId, Outcomes, SnapshotBytes, SnapshotMeta, StorageError, StoredMembership,
        TypeConfig,
    },
};
use crate::log::Durable;

/// What the rest of a node sees of its state machine.
pub struct Outlets<A: App> {
    /// The state after every applied batch.
    pub published: watch::Receiver<Published<A::View>>,
    /// The last applied index; changed after `published`.
    pub applied: watch::Receiver<u64>,
    /// The nodes that the state says belong to the cluster.
    pub members: watch::Receiver<Members>,
}

/// The state machine, for openraft.
pub struct Machine<A: App> {
    app: A,
    last: Option<LogId>,
    membership: StoredMembership,
    snapshots: Arc<Snapshots>,
    durable: Durable,
    published: watch::Sender<Published<A::View>>,
    applied: watch::Sender<u64>,
    members: watch::Sender<Members>,
}

impl<A: App> Machine<A> {
    /// Begins with a snapshot, or with the application's default. Nothing is applied that is not on this node's disk by the log's
    /// account.
    pub fn new(
        snapshots: Arc<Snapshots>,
        newest: Option<(SnapshotMeta, Bytes)>,
        durable: Durable,
    ) -> Result<(Self, Outlets<A>), AppError> {
        let (app, last, membership) = match newest {
            Some((meta, state)) => (A::restore(&state)?, meta.last_log_id, meta.last_membership),
            None => (A::default(), None, StoredMembership::default()),
        };
        let index = last.map_or(0, |id| id.index);
        let (published, published_rx) = watch::channel(Published {
            index,
            view: app.view(),
        });
        let (applied, applied_rx) = watch::channel(index);
        let (members, members_rx) = watch::channel(app.members());
        let machine = Self {
            app,
            last,
            membership,
            snapshots,
            durable,
            published,
            applied,
            members,
        };
        let outlets = Outlets {
            published: published_rx,
            applied: applied_rx,
            members: members_rx,
        };
        Ok((machine, outlets))
    }

    fn apply_entry(&mut self, entry: Entry) -> Result<Outcomes, Inapplicable> {
        let id = entry.log_id;
        let outcomes = match entry.payload {
            EntryPayload::Blank => Outcomes::default(),
            EntryPayload::Normal(batch) => self.apply_batch(id, &batch)?,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership);
                Outcomes::default()
            }
        };
        self.last = Some(id);
        Ok(outcomes)
    }

    fn apply_batch(&mut self, id: LogId, batch: &Batch) -> Result<Outcomes, Inapplicable> {
        let mut outcomes = Vec::with_capacity(batch.0.len());
        for proposal in &batch.0 {
            // openraft would not notice that its task has ended. The state is not used after a panic.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.app.apply(proposal)))
                .map_err(|_| "the application panicked".into())
                .and_then(|applied| applied.map_err(|e| described(&e)))
                .map_err(|reason| Inapplicable { id, reason })?;
            outcomes.push(outcome.into());
        }
        Ok(Outcomes(outcomes))
    }

    fn publish(&self) {
        let index = self.last.map_or(0, |id| id.index);
        self.published.send_replace(Published {
            index,
            view: self.app.view(),
        });
        let members = self.app.members();
        self.members.send_if_modified(|before| {
            let changed = *before != members;
            *before = members;
            changed
        });
        self.applied.send_replace(index);
    }
}

impl<A: App> RaftStateMachine<TypeConfig> for Machine<A> {
    type SnapshotBuilder = Builder<A>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let Some(last) = entries.last() {
            self.durable
                .until(last.log_id.index)
                .await
                .map_err(|e| StorageIOError::write_logs(AnyError::new(&e)))?;
        }
        let outcomes = entries
            .into_iter()
            .map(|entry| self.apply_entry(entry))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| StorageIOError::apply(e.id, AnyError::error(e.reason)))?;
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder<A> {
        let id = match self.last {
            Some(last) => last.to_string(),
            None => "empty".into(),
        };
        Builder {
            meta: SnapshotMeta {
                last_log_id: self.last,
                last_membership: self.membership.clone(),
                snapshot_id: id,
            },
            view: self.app.view(),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotBytes>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotBytes>,
    ) -> Result<(), StorageError> {
        let SnapshotBytes(state) = *snapshot;
        let app = A::restore(&state)
            .map_err(|e| AnyError::error(described(&e)))
            .map_err(|e| StorageIOError::read_snapshot(Some(meta.signature()), e))?;
        save(&self.snapshots, meta.clone(), state).await?;
        self.app = app;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let snapshots = Arc::clone(&self.snapshots);
        let newest = spawn_blocking(move || snapshots.newest())
            .await
            .map_err(|e| StorageIOError::read_snapshot(None, AnyError::new(&e)))?
            .map_err(|e| StorageIOError::read_snapshot(None, AnyError::new(&e)))?;
        Ok(newest.map(|(meta, state)| Snapshot {
            meta,
            snapshot: Box::new(SnapshotBytes(state)),
        }))
    }
}

/// A snapshot that is still to be written; beside the state machine, which goes on.
pub struct Builder<A: App> {
    meta: SnapshotMeta,
    view: A::View,
    snapshots: Arc<Snapshots>,
}

impl<A: App> RaftSnapshotBuilder<TypeConfig> for Builder<A> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let view = self.view.clone();
        let state: Bytes = spawn_blocking(move || A::snapshot(&view))
            .await
            .map_err(|e| {
                StorageIOError::write_snapshot(Some(self.meta.signature()), AnyError::new(&e))
            })?
            .into();
        save(&self.snapshots, self.meta.clone(), state.clone()).await?;
        Ok(Snapshot {
            meta: self.meta.clone(),
            snapshot: Box::new(SnapshotBytes(state)),
        })
    }
}

async fn save(
    snapshots: &Arc<Snapshots>,
    meta: SnapshotMeta,
    state: Bytes,
) -> Result<(), StorageError> {
    let signature = meta.signature();
    let snapshots = Arc::clone(snapshots);
    spawn_blocking(move || snapshots.save(&meta, &state))
        .await
        .map_err(|e| AnyError::new(&e))
        .and_then(|saved| saved.map_err(|e| AnyError::new(&e)))
        .map_err(|e| StorageIOError::write_snapshot(Some(signature), e).into())
}

/// An entry that cannot be applied, and why.
struct Inapplicable {
    id: LogId,
    reason: String,
}

/// openraft keeps errors as text; the causes are put into it.
fn described(error: &AppError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
