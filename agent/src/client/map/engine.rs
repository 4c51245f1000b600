//! The engine of maps: forks of one moment that each run a program, an item each, done again where a fork or its host fails. It works over
//! the API and nothing else, and tells what comes of it to who runs it ([`Front`]): the command that prints results, or the node that
//! drives a map which is left to the cluster.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    time::Duration,
};

use futures::future::try_join_all;
use proto::v1::{ForkRequest, ListNodesRequest, MapResult, NodeState};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{
    forks::{Fork, Forks, Refused},
    items::{Item, Items},
    lease::Lease,
    program::{Broken, Program, Ran},
    result::{given_up, result_of},
};
use crate::client::{failure::Failure, reach::Reach};

/// How many items run at once where that is not said.
const AT_ONCE: usize = 64;
/// How often is looked which nodes are there.
const LOOK: Duration = Duration::from_secs(2);

/// Before an item is done again: the first time so long, then each time so many times as long, and so long at most.
const PAUSE: Duration = Duration::from_millis(250);
const LONGER: u32 = 4;
const LONGEST: Duration = Duration::from_secs(4);

/// What is done for each item.
#[derive(Debug)]
pub(crate) struct Job {
    /// What is forked, where forks go, and what they have in common.
    pub forks: ForkRequest,
    pub argv: Vec<Vec<u8>>,
    /// NAME=VALUE.
    pub env: Vec<String>,
    pub user: String,
    /// How long a program may take.
    pub limit: Option<Duration>,
    /// How often an item is done again.
    pub retries: u32,
    /// How many run at once.
    pub parallel: Option<usize>,
    /// What is kept of each of a program's outputs, bytes.
    pub most_output: usize,
}

/// Who runs a map.
pub(crate) trait Front {
    /// Takes an item's result, which is its only one.
    async fn take(&self, result: MapResult) -> Result<(), Failure>;

    /// An item's program has ended, and its fork is still there.
    async fn ended(&self, item: &Item, fork: &Fork, ran: &mut Ran) -> Result<(), Broken>;

    /// Waits until forks can be asked for.
    async fn may_fork(&self) -> Result<(), Failure>;

    /// There is no room for a fork, and nothing runs that would make some: whether it is asked for once more.
    async fn no_room(&self, why: Failure) -> Result<(), Failure>;

    /// Nobody answers who makes forks: whether it is asked for once more, and that does not count.
    async fn unreachable(&self, why: &Failure) -> bool;

    /// The program that is run over all results is run again.
    fn reduced_again(&self, why: &str);
}

/// One map that is carried out.
pub(crate) struct Engine<'a, F> {
    reach: &'a Reach,
    job: &'a Job,
    front: &'a F,
    forks: Forks<'a>,
    items: RefCell<Items>,
    /// How many programs run.
    running: Cell<usize>,
    /// Rung when one has ended, and its fork is gone.
    freed: Notify,
    /// Nodes that are not there.
    absent: watch::Sender<BTreeSet<String>>,
}

impl<'a, F: Front> Engine<'a, F> {
    pub fn new(
        reach: &'a Reach,
        lease: &'a Lease<'a>,
        job: &'a Job,
        front: &'a F,
        items: Items,
    ) -> Self {
        Self {
            reach,
            job,
            front,
            forks: Forks::new(reach, lease, job.forks.clone()),
            items: RefCell::new(items),
            running: Cell::new(0),
            freed: Notify::new(),
            absent: watch::channel(BTreeSet::new()).0,
        }
    }

    /// Does all items that have no result.
    pub async fn carry_out(&self) -> Result<(), Failure> {
        let left = self.items.borrow().left();
        let at_once = self.job.parallel.unwrap_or(AT_ONCE);
        let workers = (0..at_once.min(left)).map(|_| self.work());
        let done = async { try_join_all(workers).await.map(drop) };
        self.beside(done).await
    }

    /// Runs a shell's command line over all results, in one more fork.
    pub async fn reduce(&self, command: &str, results: Vec<u8>) -> Result<Ran, Failure> {
        let argv = ["/bin/sh", "-c", command].map(|word| word.as_bytes().to_vec());
        let mut program = self.program_of(argv.into());
        program.input = Some(results);
        let reduced = async {
            for _ in 0..=self.job.retries {
                match self.ran_in_fork(&program, None).await? {
                    Ok((ran, _)) => return Ok(ran),
                    Err(why) => self.front.reduced_again(&why),
                }
            }
            Err(Failure::refused("--reduce could not be run", ""))
        };
        self.beside(reduced).await
    }

    /// Does something while forks are made and nodes are looked for.
    async fn beside<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            never = self.forks.serve() => match never {},
            never = self.look_for_nodes() => match never {},
        }
    }

    /// Does one item after the other.
    async fn work(&self) -> Result<(), Failure> {
        loop {
            // Not over a wait.
            let next = self.items.borrow_mut().next();
            let Some(item) = next else {
                return Ok(());
            };
            let program = self.program(&item);
            match self.ran_in_fork(&program, Some(&item)).await? {
                Ok((ran, fork)) => self.accept(&item, ran, &fork).await?,
                Err(why) => self.again(item, why).await?,
            }
        }
    }

    /// Runs a program in a fork that is made for it. Says why it has to be done again where that did not work.
    async fn ran_in_fork(
        &self,
        program: &Program,
        item: Option<&Item>,
    ) -> Result<Result<(Ran, Fork), String>, Failure> {
        let fork = loop {
            self.front.may_fork().await?;
            match self.forks.ask().await {
                Ok(fork) => break fork,
                Err(Refused::NoRoom(why)) if self.running.get() == 0 => {
                    self.front.no_room(why).await?;
                }
                // One that has ended makes room.
                Err(Refused::NoRoom(_)) => self.freed.notified().await,
                Err(Refused::Unreachable(why)) => {
                    if !self.front.unreachable(&why).await {
                        return Ok(Err(why.message().to_owned()));
                    }
                }
                Err(Refused::Failed(why)) => return Ok(Err(why)),
                Err(Refused::Final(failure)) => return Err(failure),
            }
        };
        self.running.set(self.running.get() + 1);
        let worked = async {
            let mut ran = program.run(self.reach, &fork.id).await?;
            if let Some(item) = item {
                self.front.ended(item, &fork, &mut ran).await?;
            }
            Ok(ran)
        };
        let worked = tokio::select! {
            worked = worked => worked,
            () = self.gone(&fork.node) => {
                Err(Broken::Again(format!("node {} is not there any more", fork.node)))
            }
        };
        self.forks.remove(&fork).await;
        self.running.set(self.running.get() - 1);
        self.freed.notify_waiters();
        match worked {
            Ok(ran) => Ok(Ok((ran, fork))),
            Err(Broken::Again(why)) => Ok(Err(why)),
            Err(Broken::Final(failure)) => Err(failure),
        }
    }

    fn program(&self, item: &Item) -> Program {
        let mut program = self.program_of(self.job.argv.clone());
        program.env.push(format!("FP_INDEX={}", item.index));
        program.input.clone_from(&item.input);
        program
    }

    fn program_of(&self, argv: Vec<Vec<u8>>) -> Program {
        let mut env = self.job.env.clone();
        env.push(format!("FP_COUNT={}", self.items.borrow().count()));
        Program {
            argv,
            env,
            user: self.job.user.clone(),
            limit: self.job.limit,
            input: None,
            most_output: self.job.most_output,
        }
    }

    /// Takes an item's result, which is its only one.
    async fn accept(&self, item: &Item, ran: Ran, fork: &Fork) -> Result<(), Failure> {
        self.items.borrow_mut().accepted(item);
        self.front.take(result_of(item, ran, fork)).await
    }

    /// Has an item be done again, or gives it up.
    async fn again(&self, item: Item, why: String) -> Result<(), Failure> {
        // What fails at once must not use up all attempts at once. Who waits has the item: others go on with others.
        if item.attempts <= self.job.retries {
            sleep(pause_after(item.attempts)).await;
        }
        let failed = self.items.borrow_mut().failed(item, &why);
        match failed {
            Some(item) => self.front.take(given_up(&item, why)).await,
            None => Ok(()),
        }
    }

    /// Looks which nodes are there. One that is not at two looks is gone: what runs there is done elsewhere.
    async fn look_for_nodes(&self) -> std::convert::Infallible {
        let mut before = BTreeSet::new();
        loop {
            sleep(LOOK).await;
            let listed = self.reach.call(async |attempt| {
                let request = attempt.request(ListNodesRequest {});
                attempt.nodes().list_nodes(request).await
            });
            // Where nobody answers, the calls that matter say so.
            let Ok(listed) = listed.await else { continue };
            let offline = listed.nodes.into_iter();
            let offline = offline.filter(|node| node.state() == NodeState::Offline);
            let offline: BTreeSet<String> = offline.map(|node| node.name).collect();
            let gone = offline.intersection(&before).cloned().collect();
            before = offline;
            self.absent.send_replace(gone);
        }
    }

    async fn gone(&self, node: &str) {
        let mut absent = self.absent.subscribe();
        // The sender is this map's own.
        if absent
            .wait_for(|absent| absent.contains(node))
            .await
            .is_err()
        {
            std::future::pending().await
        }
    }
}

/// How long is waited after so many attempts, one at least.
fn pause_after(attempts: u32) -> Duration {
    let times = LONGER.saturating_pow(attempts.saturating_sub(1));
    PAUSE.saturating_mul(times).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_is_waited_longer_for() {
        let after = |attempts| pause_after(attempts).as_millis();
        assert_eq!([1, 2, 3, 4].map(after), [250, 1_000, 4_000, 4_000]);
        assert_eq!(after(u32::MAX), 4_000);
    }
}
