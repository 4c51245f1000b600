//! Where a VM is, for commands that go on until its process ends: one that has moved has another on its new node, and they go on with that.

use std::time::Duration;

use proto::v1::{GetVmRequest, Vm, VmState};
use tokio::time::{Instant, sleep};

use super::{
    Context,
    failure::{Failure, FailureKind},
};

/// How long a VM that has moved may take to have its process.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A VM and where it was seen.
#[derive(Debug)]
pub(crate) struct Followed {
    /// Its id: its name may be another's by then.
    pub(crate) id: String,
    name: String,
    node: String,
}

impl Followed {
    /// Of a VM by its name or id.
    pub(crate) async fn of(context: &Context, vm: &str) -> Result<Self, Failure> {
        let found = get(context, vm).await?;
        Ok(Self {
            id: found.id,
            name: found.name,
            node: found.node,
        })
    }

    /// Whether its process ended because it has moved; then the one on its new node runs.
    pub(crate) async fn has_moved(&mut self, context: &Context) -> Result<bool, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = match get(context, &self.id).await {
                Ok(found) => found,
                // Deleted, or no longer theirs to see: it has ended for whoever follows it.
                Err(failure) if failure.kind == FailureKind::Refused => return Ok(false),
                Err(failure) => return Err(failure),
            };
            if found.node == self.node || Instant::now() >= deadline {
                return Ok(false);
            }
            if matches!(found.state(), VmState::Running | VmState::Paused) {
                eprint!("{} has moved to {}\r\n", self.name, found.node);
                self.node = found.node;
                return Ok(true);
            }
            sleep(PAUSE).await;
        }
    }
}

async fn get(context: &Context, vm: &str) -> Result<Vm, Failure> {
    let request = GetVmRequest { vm: vm.to_owned() };
    let reach = context.reach()?;
    reach
        .call(async |attempt| attempt.vms().get_vm(attempt.request(request.clone())).await)
        .await
}
