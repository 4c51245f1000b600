//! What a driver tells the cluster of its map: results, and what it waits for.

use std::{cell::RefCell, convert::Infallible, future::pending};

use proto::v1::MapResult;
use raft::state::{Command, Map, MapId};
use tokio::sync::{Notify, oneshot};

use crate::{convert, node::Node};

/// A report with so many bytes gets no more results.
const ENOUGH: u64 = 256 << 10;

/// Results that are on their way.
pub(super) struct Reports<'a> {
    node: &'a Node,
    map: MapId,
    epoch: u64,
    waiting: RefCell<Vec<(MapResult, oneshot::Sender<()>)>>,
    note: RefCell<String>,
    /// Rung when there is something to tell.
    rung: Notify,
}

impl<'a> Reports<'a> {
    pub fn new(node: &'a Node, map: &Map) -> Self {
        Self {
            node,
            map: map.id,
            epoch: map.epoch,
            waiting: RefCell::default(),
            note: RefCell::default(),
            rung: Notify::new(),
        }
    }

    /// Tells a result, and waits until the cluster has it: no more are made than it takes.
    pub async fn tell(&self, result: MapResult) {
        let (sender, told) = oneshot::channel();
        self.waiting.borrow_mut().push((result, sender));
        self.rung.notify_one();
        if told.await.is_err() {
            // The drive is over.
            pending::<()>().await;
        }
    }

    /// Says what is waited for; empty for nothing.
    pub fn note(&self, note: &str) {
        if *self.note.borrow() != note {
            note.clone_into(&mut self.note.borrow_mut());
            self.rung.notify_one();
        }
    }

    /// Tells what there is to tell.
    pub async fn serve(&self) -> Infallible {
        loop {
            self.rung.notified().await;
            loop {
                let (results, told) = self.batch();
                let command = Command::ReportMap {
                    map: self.map,
                    epoch: self.epoch,
                    results,
                    note: self.note.borrow().clone(),
                };
                if self.node.report(command).await.is_none() {
                    // The agent ends.
                    pending::<()>().await;
                }
                for told in told {
                    // Whoever told may be gone.
                    let _gone = told.send(());
                }
                if self.waiting.borrow().is_empty() {
                    break;
                }
            }
        }
    }

    /// As many results as go into one report.
    fn batch(&self) -> (Vec<raft::state::MapResult>, Vec<oneshot::Sender<()>>) {
        let mut waiting = self.waiting.borrow_mut();
        let sizes = waiting.iter();
        let count = fitting(sizes.map(|(one, _)| (one.stdout.len() + one.stderr.len()) as u64));
        let batch = waiting.drain(..count);
        batch
            .map(|(result, told)| (convert::map_result_of(result), told))
            .unzip()
    }
}

/// How many results of these sizes go into one report: one at least.
fn fitting(sizes: impl Iterator<Item = u64>) -> usize {
    let mut bytes = 0;
    sizes
        .take_while(|size| {
            let is_in = bytes < ENOUGH;
            bytes += size;
            is_in
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_bounded_and_takes_one_at_least() {
        let of = |sizes: &[u64]| fitting(sizes.iter().copied());
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[9 * ENOUGH, 1]), 1);
        assert_eq!(of(&[ENOUGH - 1, 1, 1]), 2);
        assert_eq!(of(&[0, 0, 0]), 3);
    }
}
