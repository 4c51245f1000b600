//! What came of items, as it is printed.

use std::io::{self, Write};

use serde::Serialize;

use super::{forks::Fork, items::Item, program::Ran};

/// What came of an item.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ItemView {
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

impl ItemView {
    pub fn of(item: &Item, ran: Ran, fork: &Fork) -> Self {
        Self {
            index: item.index,
            exit_code: Some(ran.code),
            error: ran.error,
            stdout: text(&ran.output),
            stderr: text(&ran.errors),
            truncated: ran.is_cut,
            vm: fork.name.clone(),
            node: fork.node.clone(),
            attempts: item.attempts,
            took_ms: ran.took_us as f64 / 1e3,
        }
    }

    /// Of one that was tried often enough.
    pub fn given_up(item: &Item, why: String) -> Self {
        Self {
            index: item.index,
            exit_code: None,
            error: why,
            stdout: String::new(),
            stderr: String::new(),
            truncated: false,
            vm: String::new(),
            node: String::new(),
            attempts: item.attempts,
            took_ms: 0.0,
        }
    }

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
pub(super) struct ReduceView {
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

impl ReduceView {
    pub fn of(ran: Ran) -> Self {
        Self {
            reduce: Reduced {
                exit_code: ran.code,
                error: ran.error,
                stdout: text(&ran.output),
                stderr: text(&ran.errors),
                truncated: ran.is_cut,
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
        let view = ItemView::of(&item(7), ran, &fork());
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
        assert!(ItemView::of(&item(0), Ran::default(), &fork()).is_good());
        let collected = Ran {
            error: "nothing was collected".into(),
            ..Ran::default()
        };
        assert!(!ItemView::of(&item(0), collected, &fork()).is_good());
        let given_up = ItemView::given_up(&item(0), "no host".into());
        assert!(!given_up.is_good());
        assert_eq!(given_up.why(), "no host");
    }
}
