//! `fpagent map`: forks of one moment that each run a program, and what comes of it.
//!
//! It is a client of the API and nothing more: in the cluster there is a lease, which it renews, and what is kept by that. So whatever
//! becomes of this program, of the agent that it talks to, or of the leader, nothing is left of it for longer than that lease.

mod forks;
mod items;
mod lease;
mod program;
mod result;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    time::Duration,
};

use futures::future::try_join_all;
use guest::files::To;
use proto::v1::{CreateSnapshotRequest, ForkRequest, ListNodesRequest, NodeState};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use self::{
    forks::{Fork, Forks, Refused},
    items::{Item, Items},
    lease::Lease,
    program::{Broken, Program, Ran},
    result::{ItemView, ReduceView},
};
use super::{
    Context,
    args::{map::MapArgs, work::name_at},
    commands::copy,
    failure::{Failure, FailureKind},
    progress::Progress,
    reach::Reach,
};

/// How long one call may take: a fork onto a host that has nothing yet brings all of it there.
const CALL_PATIENCE: Duration = Duration::from_secs(300);
/// How many items run at once where that is not said.
const AT_ONCE: usize = 64;
/// How often is looked which nodes are there.
const LOOK: Duration = Duration::from_secs(2);
/// The input of all items, bytes: they are kept here until they are done.
const MOST_INPUT: u64 = 256 << 20;
/// What a shell says of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// Runs a program in forks of a VM or a snapshot.
pub(super) async fn run(context: &Context, args: MapArgs) -> Result<(), Failure> {
    let inputs = inputs(&args)?;
    let reach = context.reach_for(CALL_PATIENCE)?;
    let lease = Lease::take(&reach, args.lease).await?;
    let worked = async {
        let source = source(&reach, &args.source, &lease).await?;
        let map = Map::new(context, &reach, &args, &lease, source, inputs);
        map.carry_out().await
    };
    let outcome = tokio::select! {
        outcome = worked => outcome,
        lost = lease.keep() => Err(lost),
        interrupted = interrupted() => Err(interrupted),
    };
    let cleaned = lease.end().await;
    // What went wrong first is what is told.
    outcome.and(cleaned)
}

/// What each item is given to read.
fn inputs(args: &MapArgs) -> Result<Vec<Option<Vec<u8>>>, Failure> {
    let Some(path) = &args.input else {
        let count = args.count.unwrap_or(0) as usize;
        return Ok(vec![None; count]);
    };
    let unreadable = |error: io::Error| {
        Failure::refused(format!("{} cannot be read: {error}", path.display()), "")
    };
    let mut text = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().take(MOST_INPUT + 1).read_to_end(&mut text),
        false => File::open(path).and_then(|file| file.take(MOST_INPUT + 1).read_to_end(&mut text)),
    };
    read.map_err(unreadable)?;
    if text.len() as u64 > MOST_INPUT {
        return Err(Failure::refused(
            "the items' input is more than 256 MiB",
            "hand it over in files, with `fpagent cp` or in the image",
        ));
    }
    let lines: Vec<_> = text
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| Some(line.to_vec()))
        .collect();
    match lines.is_empty() {
        true => Err(Failure::refused(
            format!("{} has no line", path.display()),
            "each line is one item's input",
        )),
        false => Ok(lines),
    }
}

/// The moment that is forked: a snapshot as the API names it. A VM is captured once, so that all forks are of one moment.
async fn source(reach: &Reach, source: &str, lease: &Lease<'_>) -> Result<String, Failure> {
    if source.contains('@') {
        return Ok(source.to_owned());
    }
    let request = CreateSnapshotRequest {
        vm: source.to_owned(),
        keep: Some(lease.keeps()),
        request_id: lease.request_id("moment"),
        ..CreateSnapshotRequest::default()
    };
    let captured = reach.change(&request.request_id, async |attempt| {
        let request = attempt.request(request.clone());
        attempt.snapshots().create_snapshot(request).await
    });
    Ok(format!("@{}", captured.await?.id))
}

async fn interrupted() -> Failure {
    let signals = async {
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = signals.await {
        return error.into();
    }
    eprintln!("fpagent: interrupted; its forks are being deleted");
    Failure::new(FailureKind::Guest(INTERRUPTED), "", "")
}

/// One map that is carried out.
struct Map<'a> {
    context: &'a Context,
    reach: &'a Reach,
    args: &'a MapArgs,
    forks: Forks<'a>,
    items: RefCell<Items>,
    results: RefCell<Vec<ItemView>>,
    /// How many programs run.
    running: Cell<usize>,
    /// Rung when one has ended, and its fork is gone.
    freed: Notify,
    /// Nodes that are not there.
    absent: watch::Sender<BTreeSet<String>>,
    progress: Progress,
}

impl<'a> Map<'a> {
    fn new(
        context: &'a Context,
        reach: &'a Reach,
        args: &'a MapArgs,
        lease: &'a Lease<'a>,
        source: String,
        inputs: Vec<Option<Vec<u8>>>,
    ) -> Self {
        let asked_for = ForkRequest {
            source,
            node: args.node.clone(),
            spread: args.spread,
            constraints: Some(args.constraints.clone().into()),
            ..ForkRequest::default()
        };
        Self {
            context,
            reach,
            args,
            forks: Forks::new(reach, lease, asked_for),
            progress: Progress::things("mapping", inputs.len() as u64),
            items: RefCell::new(Items::new(inputs, args.retries)),
            results: RefCell::default(),
            running: Cell::new(0),
            freed: Notify::new(),
            absent: watch::channel(BTreeSet::new()).0,
        }
    }

    async fn carry_out(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        let count = self.items.borrow().count();
        let at_once = self
            .args
            .parallel
            .map_or(AT_ONCE, |at_once| at_once as usize);
        let workers = (0..at_once.min(count)).map(|_| self.work());
        tokio::select! {
            done = try_join_all(workers) => { done?; }
            never = self.forks.serve() => match never {},
            never = self.look_for_nodes() => match never {},
        }
        self.tell(begun.elapsed())?;
        match &self.args.reduce {
            Some(command) => tokio::select! {
                reduced = self.reduce(command) => reduced,
                never = self.forks.serve() => match never {},
                never = self.look_for_nodes() => match never {},
            },
            None => Ok(()),
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
                Ok((ran, fork)) => self.accept(&item, ran, &fork)?,
                Err(why) => self.again(item, why)?,
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
            match self.forks.ask().await {
                Ok(fork) => break fork,
                Err(Refused::NoRoom(failure)) if self.running.get() == 0 => return Err(failure),
                // One that has ended makes room.
                Err(Refused::NoRoom(_)) => self.freed.notified().await,
                Err(Refused::Failed(why)) => return Ok(Err(why)),
                Err(Refused::Final(failure)) => return Err(failure),
            }
        };
        self.running.set(self.running.get() + 1);
        let worked = async {
            let mut ran = program.run(self.reach, &fork.id).await?;
            if let Some(item) = item {
                self.collect(item, &fork, &mut ran).await?;
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
        let mut program = self.program_of(&self.args.command);
        program.env.push(format!("FP_INDEX={}", item.index));
        program.input.clone_from(&item.input);
        program
    }

    fn program_of(&self, command: &[std::ffi::OsString]) -> Program {
        let env = self.args.env.iter();
        let mut env: Vec<_> = env.map(|(name, value)| format!("{name}={value}")).collect();
        env.push(format!("FP_COUNT={}", self.items.borrow().count()));
        Program {
            argv: command
                .iter()
                .map(|word| word.as_bytes().to_vec())
                .collect(),
            env,
            user: self.args.user.clone(),
            limit: self.context.global.timeout,
            input: None,
        }
    }

    /// Brings back what was asked for, to a folder of the item's own.
    async fn collect(&self, item: &Item, fork: &Fork, ran: &mut Ran) -> Result<(), Broken> {
        let (Some(path), Some(into)) = (&self.args.collect, &self.args.into) else {
            return Ok(());
        };
        let folder = into.join(item.index.to_string());
        if let Err(error) = std::fs::create_dir_all(&folder) {
            let failure = Failure::refused(format!("{}: {error}", folder.display()), "");
            return Err(Broken::Final(failure));
        }
        let path = path.as_bytes().to_vec();
        let to = To::Path {
            name: name_at(&path),
            path: folder,
        };
        let quiet = Progress::none();
        match copy::copy_out(self.context, fork.id.clone(), path, to, &quiet).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.kind == FailureKind::Unreachable => {
                Err(Broken::Again(failure.message().to_owned()))
            }
            Err(failure) => {
                ran.error = format!("nothing was collected: {}", failure.message());
                Ok(())
            }
        }
    }

    /// Takes an item's result, which is its only one.
    fn accept(&self, item: &Item, ran: Ran, fork: &Fork) -> Result<(), Failure> {
        self.items.borrow_mut().accepted(item);
        self.show(ItemView::of(item, ran, fork))
    }

    /// Has an item be done again, or gives it up.
    fn again(&self, item: Item, why: String) -> Result<(), Failure> {
        let given_up = self.items.borrow_mut().failed(item, &why);
        match given_up {
            Some(item) => self.show(ItemView::given_up(&item, why)),
            None => Ok(()),
        }
    }

    fn show(&self, view: ItemView) -> Result<(), Failure> {
        self.progress.another();
        let shown = self.progress.aside(|| match self.context.for_people() {
            true => view.print(&mut io::stdout().lock(), &mut io::stderr().lock()),
            false => {
                let mut out = io::stdout().lock();
                serde_json::to_writer(&mut out, &view)?;
                out.write_all(b"\n")?;
                out.flush()
            }
        });
        self.results.borrow_mut().push(view);
        Ok(shown?)
    }

    /// Says how all went, and fails where one did.
    fn tell(&self, took: Duration) -> Result<(), Failure> {
        let results = self.results.borrow();
        let failed: Vec<&ItemView> = results.iter().filter(|one| !one.is_good()).collect();
        let repeated = results.iter().filter(|one| one.attempts > 1).count();
        if self.context.for_people() {
            self.progress.aside(|| {
                eprintln!(
                    "{} items in {:.1} s, {} failed, {repeated} repeated",
                    results.len(),
                    took.as_secs_f64(),
                    failed.len(),
                );
            });
        }
        let Some(first) = failed.iter().min_by_key(|one| one.index) else {
            return Ok(());
        };
        let message = format!("{} of {} items failed", failed.len(), results.len());
        Err(Failure::refused(
            format!(
                "{message}, the first of them {}: {}",
                first.index,
                first.why()
            ),
            "",
        ))
    }

    /// Runs a program over all results, in one more fork.
    async fn reduce(&self, command: &str) -> Result<(), Failure> {
        let argv = ["/bin/sh", "-c", command].map(std::ffi::OsString::from);
        let mut program = self.program_of(&argv);
        program.input = Some(self.results_as_lines()?);
        for _ in 0..=self.args.retries {
            match self.ran_in_fork(&program, None).await? {
                Ok((ran, _)) => return self.show_reduced(ran),
                Err(why) => self
                    .progress
                    .aside(|| eprintln!("fpagent: --reduce again: {why}")),
            }
        }
        Err(Failure::refused("--reduce could not be run", ""))
    }

    /// In the items' order, as `-o json` prints them.
    fn results_as_lines(&self) -> Result<Vec<u8>, Failure> {
        let mut results = self.results.borrow_mut();
        results.sort_by_key(|one| one.index);
        let mut lines = Vec::new();
        for result in results.iter() {
            serde_json::to_writer(&mut lines, result).map_err(io::Error::from)?;
            lines.push(b'\n');
        }
        Ok(lines)
    }

    fn show_reduced(&self, ran: Ran) -> Result<(), Failure> {
        let code = ran.code;
        self.progress.aside(|| {
            let mut out = io::stdout().lock();
            if self.context.for_people() {
                out.write_all(&ran.output)?;
                io::stderr().lock().write_all(&ran.errors)?;
            } else {
                serde_json::to_writer(&mut out, &ReduceView::of(ran))?;
                out.write_all(b"\n")?;
            }
            out.flush()
        })?;
        match code {
            0 => Ok(()),
            code => Err(Failure::new(FailureKind::Guest(code), "", "")),
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
