//! The forks that programs run in: asked for one by one, made together.

use std::{cell::RefCell, collections::VecDeque, convert::Infallible};

use futures::stream::{FuturesUnordered, StreamExt as _};
use proto::v1::{DeleteVmRequest, ForkRequest, ForkedVm, Reason};
use tokio::sync::{Notify, oneshot};
use ulid::Ulid;

use super::lease::Lease;
use crate::{
    admission::{NO_DISK, NO_MEMORY},
    client::{
        failure::{Failure, FailureKind},
        reach::Reach,
    },
};

/// How many requests for forks are under way at once: what is asked for meanwhile is one request.
const AT_ONCE: usize = 4;
/// How many forks one request may ask for.
const MOST: usize = 1_000;

/// A fork that runs.
#[derive(Debug, Clone)]
pub(crate) struct Fork {
    pub id: String,
    pub name: String,
    pub node: String,
}

/// Why there is no fork.
#[derive(Debug)]
pub(crate) enum Refused {
    /// There is no room for it now.
    NoRoom(Failure),
    /// Nobody answers.
    Unreachable(Failure),
    /// It was not made this time.
    Failed(String),
    /// It never will be.
    Final(Failure),
}

type Answer = oneshot::Sender<Result<Fork, Refused>>;

/// Makes forks of one moment.
pub(crate) struct Forks<'a> {
    reach: &'a Reach,
    lease: &'a Lease<'a>,
    /// What all requests have in common.
    asked_for: ForkRequest,
    asked: RefCell<VecDeque<Answer>>,
    /// Rung when one is asked for.
    rung: Notify,
}

impl<'a> Forks<'a> {
    pub fn new(reach: &'a Reach, lease: &'a Lease<'a>, asked_for: ForkRequest) -> Self {
        Self {
            reach,
            lease,
            asked_for,
            asked: RefCell::default(),
            rung: Notify::new(),
        }
    }

    /// Has one be made, while somebody serves.
    pub async fn ask(&self) -> Result<Fork, Refused> {
        let (answer, answered) = oneshot::channel();
        self.asked.borrow_mut().push_back(answer);
        self.rung.notify_one();
        let nobody = |_| Err(Refused::Failed("nobody makes forks any more".to_owned()));
        answered.await.unwrap_or_else(nobody)
    }

    /// Makes what is asked for.
    pub async fn serve(&self) -> Infallible {
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < AT_ONCE
                && let Some(batch) = self.batch()
            {
                under_way.push(self.make(batch));
            }
            tokio::select! {
                () = self.rung.notified() => {}
                Some(()) = under_way.next() => {}
            }
        }
    }

    /// All that is asked for now, as far as it goes into one request.
    fn batch(&self) -> Option<Vec<Answer>> {
        let mut asked = self.asked.borrow_mut();
        let count = asked.len().min(MOST);
        (count > 0).then(|| asked.drain(..count).collect())
    }

    async fn make(&self, mut batch: Vec<Answer>) {
        loop {
            let failure = match self.fork(batch.len()).await {
                Ok(children) => return self.hand_out(batch, children),
                Err(failure) => failure,
            };
            // Less may fit.
            let rest = match is_no_room(failure.reason) && batch.len() > 1 {
                true => batch.split_off(batch.len() / 2),
                false => std::mem::take(&mut batch),
            };
            for answer in rest {
                // Whoever asked may be gone.
                let _gone = answer.send(Err(refused(failure.clone())));
            }
            if batch.is_empty() {
                return;
            }
        }
    }

    fn hand_out(&self, batch: Vec<Answer>, children: Vec<ForkedVm>) {
        for (answer, child) in batch.into_iter().zip(children) {
            let fork = match child.error {
                error if error.is_empty() => Ok(Fork {
                    id: child.id,
                    name: child.name,
                    node: child.node,
                }),
                // What is there of it goes with the lease.
                error if is_host_full(&error) => Err(Refused::NoRoom(Failure::refused(error, ""))),
                error => Err(Refused::Failed(format!("its fork failed: {error}"))),
            };
            let _gone = answer.send(fork);
        }
    }

    async fn fork(&self, count: usize) -> Result<Vec<ForkedVm>, Failure> {
        let request = ForkRequest {
            count: count as u32,
            keep: Some(self.lease.keeps()),
            request_id: Ulid::new().to_string(),
            ..self.asked_for.clone()
        };
        let forked = self.reach.change(&request.request_id, async |attempt| {
            attempt.vms().fork(attempt.request(request.clone())).await
        });
        Ok(forked.await?.children)
    }

    /// Deletes one. One that cannot be deleted now goes with the lease.
    pub async fn remove(&self, fork: &Fork) {
        let request = DeleteVmRequest {
            vm: fork.id.clone(),
            force: true,
            request_id: Ulid::new().to_string(),
        };
        let removed = self.reach.change(&request.request_id, async |attempt| {
            let request = attempt.request(request.clone());
            attempt.vms().delete_vm(request).await
        });
        if let Err(failure) = removed.await {
            tracing::debug!(fork = fork.name, why = failure.message(), "not deleted");
        }
    }
}

/// Whether a fork's host has no room for it.
fn is_host_full(error: &str) -> bool {
    let mut full = [NO_MEMORY, NO_DISK].iter();
    full.any(|full| error.starts_with(full))
}

fn is_no_room(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoCapacity | Reason::OverQuota | Reason::DiskFull
    )
}

/// What a refusal of forks means for who asked for one.
fn refused(failure: Failure) -> Refused {
    match failure.reason {
        _ if failure.kind == FailureKind::Unreachable => Refused::Unreachable(failure),
        reason if is_no_room(reason) => Refused::NoRoom(failure),
        Reason::InvalidField
        | Reason::NotFound
        | Reason::Ambiguous
        | Reason::WrongState
        | Reason::HostUnfit
        | Reason::NotAllowed
        | Reason::NotSupported
        | Reason::AuthorityReplaced
        | Reason::BadPosition => Refused::Final(failure),
        _ => Refused::Failed(failure.message().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_refusal_means() {
        let of = |reason| {
            let mut failure = Failure::refused("x", "");
            failure.reason = reason;
            refused(failure)
        };
        assert!(matches!(of(Reason::NoCapacity), Refused::NoRoom(_)));
        assert!(matches!(of(Reason::NotFound), Refused::Final(_)));
        for passing in [Reason::NodeOffline, Reason::Pending, Reason::Unspecified] {
            assert!(matches!(of(passing), Refused::Failed(_)), "{passing:?}");
        }
    }
}
