//! What came of a copy.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest::files::Meter;
use serde::Serialize;

use crate::client::units::show_size;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyView {
    /// Files that were copied.
    pub files: u64,
    /// Bytes that went over.
    pub bytes: u64,
    /// Files that were there already.
    pub same_files: u64,
    /// Bytes that were there already.
    pub same_bytes: u64,
    /// Devices, sockets and pipes, which were left out.
    pub left_out: u64,
    /// Links that were left out since they point out of the tree.
    pub links_left_out: u64,
    /// Files that were deleted while this went on.
    pub gone: u64,
}

impl From<&Meter> for CopyView {
    fn from(meter: &Meter) -> Self {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        Self {
            files: get(&meter.files),
            bytes: get(&meter.bytes),
            same_files: get(&meter.same),
            same_bytes: get(&meter.spared),
            left_out: get(&meter.left_out),
            links_left_out: get(&meter.links_left_out),
            gone: get(&meter.gone),
        }
    }
}

impl CopyView {
    /// For people.
    pub fn line(&self) -> String {
        let mut line = format!("{} copied, {}", files(self.files), show_size(self.bytes));
        if self.same_bytes > 0 || self.same_files > 0 {
            let there = show_size(self.same_bytes);
            line.push_str(&format!("; {there} were there already"));
            if self.same_files > 0 {
                line.push_str(&format!(" ({})", files(self.same_files)));
            }
        }
        line
    }

    /// What should be known besides: a line for each.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut warn = |count: u64, one: &str, many: &str| match count {
            0 => {}
            1 => all.push(format!("1 {one}")),
            count => all.push(format!("{count} {many}")),
        };
        warn(
            self.links_left_out,
            "link that points out of the tree was left out",
            "links that point out of the tree were left out",
        );
        warn(
            self.left_out,
            "thing that is no file (a device, a socket or a pipe) was left out",
            "things that are no files (devices, sockets or pipes) were left out",
        );
        warn(
            self.gone,
            "file was deleted before it was copied",
            "files were deleted before they were copied",
        );
        all
    }
}

fn files(count: u64) -> String {
    match count {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_copy() {
        let view = CopyView {
            files: 2,
            bytes: 3 << 20,
            ..CopyView::default()
        };
        assert_eq!(view.line(), "2 files copied, 3M");
        assert!(view.warnings().is_empty());
        let view = CopyView {
            files: 1,
            same_files: 1,
            same_bytes: 5,
            links_left_out: 3,
            left_out: 1,
            ..CopyView::default()
        };
        assert_eq!(
            view.line(),
            "1 file copied, 0; 5 were there already (1 file)"
        );
        assert_eq!(
            view.warnings(),
            [
                "3 links that point out of the tree were left out",
                "1 thing that is no file (a device, a socket or a pipe) was left out"
            ]
        );
    }
}
