//! A host's memory.

use proto::v1;
use serde::Serialize;

use super::vm::MemoryUseView;
use crate::client::units::show_size;

/// A host's memory as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct HostMemoryView {
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub pressure: &'static str,
    pub guests: MemoryUseView,
    pub processes: u32,
    pub merging: MergingView,
}

/// How the kernel's merging of equal pages goes, as it is printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the proto message")]
pub struct MergingView {
    pub setting: String,
    pub running: bool,
    pub reason: String,
    pub scanner_seconds: f64,
    pub scanner_percent: f64,
}

impl From<v1::HostMemory> for HostMemoryView {
    fn from(memory: v1::HostMemory) -> Self {
        let pressure = match memory.pressure() {
            v1::MemoryPressure::Unspecified => "unknown",
            v1::MemoryPressure::None => "none",
            v1::MemoryPressure::Some => "some",
            v1::MemoryPressure::High => "high",
        };
        let merging = memory.merging.unwrap_or_default();
        Self {
            total_bytes: memory.total_bytes,
            available_bytes: memory.available_bytes,
            pressure,
            guests: memory.guests.unwrap_or_default().into(),
            processes: memory.processes,
            merging: MergingView {
                setting: merging.setting,
                running: merging.running,
                reason: merging.reason,
                scanner_seconds: merging.scanner_seconds,
                scanner_percent: merging.scanner_percent,
            },
        }
    }
}

impl HostMemoryView {
    /// For people: a line for each thing that matters.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let guests = &self.guests;
        let saved = match u64::try_from(guests.merge_profit_bytes) {
            Ok(saved) => format!("{} saved", show_size(saved)),
            Err(_) => format!(
                "costs {} more than it saves",
                show_size(guests.merge_profit_bytes.unsigned_abs())
            ),
        };
        let merging = match self.merging.setting.as_str() {
            "off" => "off".to_owned(),
            setting => format!(
                "{setting}: {saved}, {:.1}% of a processor; {}",
                self.merging.scanner_percent, self.merging.reason
            ),
        };
        vec![
            (
                "memory",
                format!(
                    "{} of {} available, pressure {}",
                    show_size(self.available_bytes),
                    show_size(self.total_bytes),
                    self.pressure
                ),
            ),
            (
                "guests",
                format!(
                    "{} processes with {} of their own, {} shared",
                    self.processes,
                    show_size(guests.private_bytes),
                    show_size(guests.shared_bytes)
                ),
            ),
            ("merging", merging),
        ]
    }
}
