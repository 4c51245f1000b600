//! What the agent and the switch say to each other: JSON, a message a line, over a Unix socket. Each that the agent sends is answered before
//! it sends the next; with one to plug something in comes its socket.

use serde::{Deserialize, Serialize};

/// The longest message, bytes.
pub const LONGEST: usize = 4096;

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToSwitch {
    /// Has a socket that comes with it be a member's, in the place of the one that it had.
    Plug {
        /// Its group.
        segment: String,
        /// Its number there.
        number: u8,
    },
}

/// What the switch answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToAgent {
    /// It is done, or why not.
    Done {
        /// Why it is not.
        problem: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beside::line;

    #[test]
    fn messages_are_lines_that_later_versions_can_read() {
        let message = ToSwitch::Plug {
            segment: "01A".into(),
            number: 3,
        };
        let line = line(&message).unwrap();
        assert_eq!(line, b"{\"plug\":{\"segment\":\"01A\",\"number\":3}}\n");
        assert_eq!(serde_json::from_slice::<ToSwitch>(&line).unwrap(), message);
    }
}
