//! What the agent and the page server say to each other: JSON, a message a line, over a Unix socket.

use serde::{Deserialize, Serialize};

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToServer {
    /// Show a file. Answered with [`ToAgent::Shown`].
    Show {
        /// What it is called.
        file: String,
        /// Where it is put together, below the data directory.
        part: String,
        /// How long it is, bytes.
        size: u64,
        /// The group that may read it; `None` for all.
        group: Option<u32>,
    },
    /// These bytes are in its part now.
    Here {
        /// Which file.
        file: String,
        /// From this byte on.
        from: u64,
        /// Up to, not including, this one.
        to: u64,
    },
    /// All of it is.
    Whole {
        /// Which file.
        file: String,
    },
    /// The rest of it will not come: whoever reads that gets an error.
    GivenUp {
        /// Which file.
        file: String,
    },
}

/// What the page server says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToAgent {
    /// What it shows: the first that an agent hears.
    Shows {
        /// All files that have not come.
        files: Vec<Coming>,
    },
    /// A file is shown, or why not.
    Shown {
        /// Which file.
        file: String,
        /// Why it is not.
        problem: Option<String>,
    },
    /// Somebody waits for these bytes.
    Wanted {
        /// Which file.
        file: String,
        /// From this byte on.
        from: u64,
        /// Up to, not including, this one.
        to: u64,
    },
}

/// A file that has not come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Coming {
    /// What it is called.
    pub file: String,
    /// How long it is, bytes.
    pub size: u64,
    /// What is not here, ascending: `from`, `to`.
    pub lacking: Vec<(u64, u64)>,
    /// What is waited for: `from`, `to`.
    pub wanted: Vec<(u64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beside::line;

    #[test]
    fn messages_are_lines_that_later_versions_can_read() {
        let message = ToServer::Here {
            file: "base-1".into(),
            from: 0,
            to: 4096,
        };
        let line = line(&message).unwrap();
        assert_eq!(
            line,
            b"{\"here\":{\"file\":\"base-1\",\"from\":0,\"to\":4096}}\n"
        );
        assert_eq!(serde_json::from_slice::<ToServer>(&line).unwrap(), message);
    }
}
