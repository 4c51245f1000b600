//! What became of a fork.

use proto::v1;
use serde::Serialize;

use super::{milliseconds, snapshot::CaptureView, vm::vm_state_word};
use crate::client::output::Row;

/// A fork's outcome as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct ForkView {
    pub operation: String,
    pub snapshot: String,
    pub pause_ms: f64,
    pub children: Vec<ChildView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureView>,
}

/// One child.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct ChildView {
    pub id: String,
    pub name: String,
    pub node: String,
    pub state: &'static str,
    pub running_ms: f64,
    pub ready_ms: f64,
    pub error: String,
    pub failed_steps: Vec<String>,
}

impl From<v1::ForkResponse> for ForkView {
    fn from(fork: v1::ForkResponse) -> Self {
        // The pause stands beside the children: said twice, a script would count it twice.
        let capture = fork.capture.map(|report| CaptureView {
            pause_ms: None,
            ..report.into()
        });
        Self {
            operation: fork.operation,
            snapshot: fork.snapshot,
            pause_ms: milliseconds(fork.pause_ms),
            children: fork.children.into_iter().map(ChildView::from).collect(),
            capture,
        }
    }
}

impl From<v1::ForkedVm> for ChildView {
    fn from(child: v1::ForkedVm) -> Self {
        let state = vm_state_word(child.state());
        Self {
            id: child.id,
            name: child.name,
            node: child.node,
            state,
            running_ms: milliseconds(child.running_ms),
            ready_ms: milliseconds(child.ready_ms),
            error: child.error,
            failed_steps: child.failed_steps,
        }
    }
}

impl ForkView {
    /// How many children failed.
    pub fn failed(&self) -> usize {
        self.children
            .iter()
            .filter(|child| !child.error.is_empty())
            .count()
    }

    /// Why a child failed: of several, the first.
    pub fn why_failed(&self) -> Option<&str> {
        let mut errors = self.children.iter().map(|child| child.error.as_str());
        errors.find(|error| !error.is_empty())
    }

    /// One line about all of it.
    pub fn summary(&self) -> String {
        let running = self.children.len() - self.failed();
        let slowest = self
            .children
            .iter()
            .filter(|child| child.error.is_empty())
            .map(|child| child.running_ms);
        let slowest = slowest.fold(0.0, f64::max);
        let mut text = match running {
            0 => format!("none of {} running", self.children.len()),
            _ if running == self.children.len() => {
                format!("{running} running after {slowest:.1} ms")
            }
            _ => format!(
                "{running} of {} running after {slowest:.1} ms",
                self.children.len()
            ),
        };
        let unready = self
            .children
            .iter()
            .filter(|child| child.error.is_empty() && !child.failed_steps.is_empty())
            .count();
        if unready > 0 {
            text.push_str(&format!("; steps failed in {unready}"));
        }
        if self.pause_ms > 0.0 {
            text.push_str(&format!(
                "; the parent stood still for {:.1} ms",
                self.pause_ms
            ));
        }
        if let Some(capture) = self
            .capture
            .as_ref()
            .filter(|capture| !capture.note.is_empty())
        {
            text.push_str(&format!(" ({})", capture.note));
        }
        text
    }
}

impl Row for ChildView {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["NAME", "STATE", "NODE", "RUNNING", "ERROR"];
        if wide {
            header.extend(["READY", "ID"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let time = |ms: f64| {
            if ms > 0.0 {
                format!("{ms:.1}ms")
            } else {
                String::new()
            }
        };
        let mut cells = vec![
            self.name.clone(),
            self.state.to_owned(),
            self.node.clone(),
            time(self.running_ms),
            match self.error.as_str() {
                "" => self.failed_steps.join("; "),
                error => error.to_owned(),
            },
        ];
        if wide {
            cells.extend([time(self.ready_ms), self.id.clone()]);
        }
        cells
    }
}
