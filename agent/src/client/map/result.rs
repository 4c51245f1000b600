//! What came of items, as it is printed.

use std::io::{self, Write};

use proto::v1::MapResult;
use serde::Serialize;

use super::{forks::Fork, items::Item, program::Ran};
use crate::client::failure::Failure;

/// What came of an item.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ItemView {
    /// Its number, from 0.
    pub index: usize,
    /// As a shell has it; `null` where its program could not be run to its end.
    pub exit_code: Option<u8>,
    /// What that does not say.
    pub error: String,
    /// What it printed. What is no UTF-8 is replaced: files are for that.
    pub stdout: String,
    /// The same.
    pub stderr: String,
    /// Whether it printed more than is kept.
    pub truncated: bool,
    /// The fork's name.
    pub vm: String,
    /// Where that was.
    pub node: String,
    /// How often it was begun.
    pub attempts: u32,
    /// How long its program ran.
    pub took_ms: f64,
}

impl From<MapResult> for ItemView {
    fn from(result: MapResult) -> Self {
        let code = result.exit_code;
        Self {
            index: result.index as usize,
            exit_code: code.map(|code| u8::try_from(code).unwrap_or(u8::MAX)),
            error: result.error,
            stdout: text(&result.stdout),
            stderr: text(&result.stderr),
            truncated: result.truncated,
            vm: result.vm,
            node: result.node,
            attempts: result.attempts,
            took_ms: result.took_us as f64 / 1e3,
        }
    }
}

/// The result of an item whose program ran.
pub(crate) fn result_of(item: &Item, ran: Ran, fork: &Fork) -> MapResult {
    MapResult {
        vm: fork.name.clone(),
        node: fork.node.clone(),
        ..result_of_ran(item.index, item.attempts, ran)
    }
}

/// The same of a program that ran in no item's fork.
pub(crate) fn result_of_ran(index: usize, attempts: u32, ran: Ran) -> MapResult {
    MapResult {
        index: index as u32,
        exit_code: Some(ran.code.into()),
        error: ran.error,
        stdout: ran.output.into(),
        stderr: ran.errors.into(),
        truncated: ran.is_cut,
        attempts,
        took_us: ran.took_us,
        ..MapResult::default()
    }
}

/// The result of an item that was tried often enough.
pub(crate) fn given_up(item: &Item, why: String) -> MapResult {
    MapResult {
        index: item.index as u32,
        error: why,
        attempts: item.attempts,
        ..MapResult::default()
    }
}

/// Results in the items' order, as `-o json` prints them.
pub(crate) fn as_lines(mut results: Vec<ItemView>) -> Result<Vec<u8>, Failure> {
    results.sort_by_key(|one| one.index);
    let mut lines = Vec::new();
    for result in results {
        serde_json::to_writer(&mut lines, &result).map_err(io::Error::from)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

impl ItemView {
    /// Whether all went well.
    pub fn is_good(&self) -> bool {
        self.exit_code == Some(0) && self.error.is_empty()
    }

    /// What did not.
    pub fn why(&self) -> String {
        match (self.exit_code, self.error.as_str()) {
            (Some(code), "") => format!("it ended with {code}"),
            (_, error) => error.to_owned(),
        }
    }

    /// For people: what it printed, each line with the item's number before it.
    pub fn print(&self, out: &mut impl Write, errors: &mut impl Write) -> io::Result<()> {
        let index = self.index;
        for line in self.stdout.lines() {
            writeln!(out, "{index}: {line}")?;
        }
        out.flush()?;
        for line in self.stderr.lines() {
            writeln!(errors, "{index}: {line}")?;
        }
        if self.truncated {
            writeln!(errors, "{index}: (it printed more than is kept)")?;
        }
        if !self.is_good() {
            writeln!(errors, "{index}: failed: {}", self.why())?;
        }
        Ok(())
    }
}

/// What came of the program that was run over all results.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReduceView {
    reduce: Reduced,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reduced {
    exit_code: u8,
    error: String,
    stdout: String,
    stderr: String,
    truncated: bool,
}

impl From<MapResult> for ReduceView {
    fn from(result: MapResult) -> Self {
        let code = result.exit_code.unwrap_or(u32::from(u8::MAX));
        Self {
            reduce: Reduced {
                exit_code: u8::try_from(code).unwrap_or(u8::MAX),
                error: result.error,
                stdout: text(&result.stdout),
                stderr: text(&result.stderr),
                truncated: result.truncated,
            },
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(index: usize) -> Item {
        Item {
            index,
            input: None,
            attempts: 2,
        }
    }

    fn fork() -> Fork {
        Fork {
            id: "01A".into(),
            name: "demo-7".into(),
            node: "node2".into(),
        }
    }

    #[test]
    fn a_result_is_printed() {
        let ran = Ran {
            code: 3,
            output: b"a\nb".to_vec(),
            errors: b"oh\n".to_vec(),
            took_us: 1_500,
            ..Ran::default()
        };
        let view = ItemView::from(result_of(&item(7), ran, &fork()));
        let json = serde_json::to_value(&view).unwrap();
        let expected = serde_json::json!({
            "index": 7, "exitCode": 3, "error": "", "stdout": "a\nb", "stderr": "oh\n", "truncated": false,
            "vm": "demo-7", "node": "node2", "attempts": 2, "tookMs": 1.5,
        });
        assert_eq!(json, expected);
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        view.print(&mut out, &mut errors).unwrap();
        assert_eq!(text(&out), "7: a\n7: b\n");
        assert_eq!(text(&errors), "7: oh\n7: failed: it ended with 3\n");
    }

    #[test]
    fn only_a_program_that_ended_with_0_is_good() {
        let view = |ran| ItemView::from(result_of(&item(0), ran, &fork()));
        assert!(view(Ran::default()).is_good());
        let collected = Ran {
            error: "nothing was collected".into(),
            ..Ran::default()
        };
        assert!(!view(collected).is_good());
        let given_up = ItemView::from(given_up(&item(0), "no host".into()));
        assert!(!given_up.is_good());
        assert_eq!(given_up.why(), "no host");
    }
}
