//! An operation.

use proto::v1;
use serde::Serialize;

use super::{Moment, age, time};
use crate::client::{output::Row, units};

/// An operation as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct OperationView {
    pub id: String,
    pub owner: String,
    pub kind: &'static str,
    pub state: &'static str,
    pub source: String,
    pub snapshot: String,
    pub vms: Vec<String>,
    pub node: String,
    pub created_at: Option<Moment>,
    pub ended_at: Option<Moment>,
    pub error: String,
    pub cancel_requested: bool,
    pub done: u32,
    pub total: u32,
    pub transfers: Vec<TransferView>,
    pub to: String,
    pub pause_ms: f64,
}

/// What a node fetches for an operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct TransferView {
    pub node: String,
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub moved_bytes: u64,
}

impl From<v1::Transfer> for TransferView {
    fn from(transfer: v1::Transfer) -> Self {
        Self {
            node: transfer.node,
            done_bytes: transfer.done_bytes,
            total_bytes: transfer.total_bytes,
            moved_bytes: transfer.moved_bytes,
        }
    }
}

impl TransferView {
    /// For people.
    fn text(&self) -> String {
        format!(
            "{} fetches {} of {}",
            self.node,
            units::show_size(self.done_bytes),
            units::show_size(self.total_bytes)
        )
    }
}

impl From<v1::Operation> for OperationView {
    fn from(operation: v1::Operation) -> Self {
        let (kind, state) = (kind_word(operation.kind()), state_word(operation.state()));
        Self {
            id: operation.id,
            owner: operation.owner,
            kind,
            state,
            source: operation.source,
            snapshot: operation.snapshot,
            vms: operation.vms,
            node: operation.node,
            created_at: time(operation.created_at),
            ended_at: time(operation.ended_at),
            error: operation.error,
            cancel_requested: operation.cancel_requested,
            done: operation.done,
            total: operation.total,
            transfers: operation
                .transfers
                .into_iter()
                .map(TransferView::from)
                .collect(),
            to: operation.to,
            pause_ms: operation.pause_ms,
        }
    }
}

impl OperationView {
    /// Why it failed, what is on its way for it, or how long what was moved stood still.
    fn note(&self) -> String {
        if !self.error.is_empty() {
            return self.error.clone();
        }
        if self.pause_ms > 0.0 {
            return format!("stood still for {:.1} ms", self.pause_ms);
        }
        let texts: Vec<String> = self.transfers.iter().map(TransferView::text).collect();
        match (texts.is_empty(), self.to.as_str(), self.state) {
            (true, to, "open") if !to.is_empty() => format!("to {to}"),
            _ => texts.join(", "),
        }
    }
}

impl Row for OperationView {
    fn owner(&self) -> Option<&str> {
        Some(&self.owner)
    }

    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["ID", "KIND", "STATE", "DONE", "NODE", "AGE", "NOTE"];
        if wide {
            header.extend(["SOURCE", "SNAPSHOT"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.id.clone(),
            self.kind.to_owned(),
            self.state.to_owned(),
            format!("{}/{}", self.done, self.total),
            self.node.clone(),
            age(self.created_at),
            self.note(),
        ];
        if wide {
            cells.extend([self.source.clone(), self.snapshot.clone()]);
        }
        cells
    }
}

fn kind_word(kind: v1::OperationKind) -> &'static str {
    match kind {
        v1::OperationKind::Unspecified => "unknown",
        v1::OperationKind::Snapshot => "snapshot",
        v1::OperationKind::Fork => "fork",
        v1::OperationKind::Reset => "reset",
        v1::OperationKind::Suspend => "suspend",
        v1::OperationKind::Move => "move",
    }
}

fn state_word(state: v1::OperationState) -> &'static str {
    match state {
        v1::OperationState::Unspecified => "unknown",
        v1::OperationState::Open => "open",
        v1::OperationState::Complete => "complete",
        v1::OperationState::Failed => "failed",
    }
}
