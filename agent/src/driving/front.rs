//! How a driver takes what happens: results go to the cluster, and what cannot be done now is waited for.

use std::{cell::Cell, time::Duration};

use proto::v1::MapResult;
use raft::state::Map;
use tokio::time::{Instant, sleep};

use super::reports::Reports;
use crate::{
    client::{
        failure::Failure,
        map::{
            engine::Front,
            forks::Fork,
            items::Item,
            program::{Broken, Ran},
        },
    },
    convert::node_name,
    node::Node,
};

/// Between two looks whether something can be had now.
const PAUSE: Duration = Duration::from_secs(2);
/// How long is waited for room where nothing of the map runs.
const ROOM_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The front of a map that this node drives.
pub(super) struct Driver<'a> {
    node: &'a Node,
    map: &'a Map,
    reports: &'a Reports<'a>,
    /// Since when there is no room.
    full_since: Cell<Option<Instant>>,
}

impl<'a> Driver<'a> {
    pub fn new(node: &'a Node, map: &'a Map, reports: &'a Reports<'a>) -> Self {
        Self {
            node,
            map,
            reports,
            full_since: Cell::new(None),
        }
    }

    /// What is waited for before the moment can be forked; `None` when it can.
    fn waits_for(&self) -> Result<Option<String>, Failure> {
        let state = self.node.state();
        let why = |reason| Failure::refused(reason, "");
        if !state.moment_of(self.map).map_err(why)? {
            return Ok(Some("its VM is being captured".to_owned()));
        }
        let Some(moment) = state.snapshots.get(&self.map.snapshot) else {
            return Ok(None);
        };
        // While nothing is known of the others nobody is taken for offline.
        let online = self.node.leases.online();
        let is_there = |node| online.as_ref().is_none_or(|online| online.contains(node));
        if moment.nodes.iter().any(is_there) {
            return Ok(None);
        }
        let names = moment.nodes.iter().map(|node| node_name(&state, *node));
        let names: Vec<String> = names.collect();
        Ok(Some(format!(
            "the moment that it forks is on {} only, which is not there",
            names.join(", ")
        )))
    }
}

impl Front for Driver<'_> {
    async fn take(&self, result: MapResult) -> Result<(), Failure> {
        self.full_since.set(None);
        self.reports.note("");
        self.reports.tell(result).await;
        Ok(())
    }

    async fn ended(&self, _item: &Item, _fork: &Fork, _ran: &mut Ran) -> Result<(), Broken> {
        Ok(())
    }

    async fn may_fork(&self) -> Result<(), Failure> {
        let mut has_waited = false;
        while let Some(what) = self.waits_for()? {
            self.reports.note(&what);
            has_waited = true;
            sleep(PAUSE / 8).await;
        }
        if has_waited {
            self.reports.note("");
        }
        Ok(())
    }

    async fn no_room(&self, why: Failure) -> Result<(), Failure> {
        let now = Instant::now();
        let since = self.full_since.get().unwrap_or(now);
        if now.duration_since(since) > ROOM_PATIENCE {
            return Err(why);
        }
        self.full_since.set(Some(since));
        self.reports.note(why.message());
        sleep(PAUSE).await;
        Ok(())
    }

    async fn unreachable(&self, why: &Failure) -> bool {
        tracing::debug!(map = %self.map.id, why = why.message(), "a fork is asked for again");
        sleep(PAUSE).await;
        true
    }

    fn reduced_again(&self, why: &str) {
        tracing::debug!(map = %self.map.id, why, "the program over all results is run again");
    }
}
