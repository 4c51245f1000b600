//! What guests ask for: to be forked, to end, and how those that they forked have ended.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Asked;
use crate::node::Node;

/// Looks at requests until the node ends.
pub async fn run(node: Arc<Node>, mut requests: mpsc::Receiver<Asked>) {
    loop {
        let asked = tokio::select! {
            () = node.cancel.cancelled() => return,
            asked = requests.recv() => asked,
        };
        let Some(asked) = asked else { return };
        asked.stream.fail("not yet");
    }
}
