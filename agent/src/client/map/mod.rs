//! `fpagent map`: forks of one moment that each run a program, and what comes of it.
//!
//! Attached, it is a client of the API and nothing more: in the cluster there is a lease, which it renews, and what is kept by that. So
//! whatever becomes of this program, of the agent that it talks to, or of the leader, nothing is left of it for longer than that lease. With
//! `--detach` it hands the map over ([`detach`]), and a node of the cluster runs the same [`engine`].

pub(crate) mod detach;
pub(crate) mod engine;
pub(crate) mod forks;
pub(crate) mod items;
pub(crate) mod lease;
pub(crate) mod program;
pub(crate) mod result;
pub(crate) mod shown;

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::ffi::OsStrExt as _,
    time::Duration,
};

use guest::files::To;
use proto::v1::{CreateSnapshotRequest, ForkRequest, MapResult};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use self::{
    engine::{Engine, Front, Job},
    forks::Fork,
    items::{Item, Items},
    lease::Lease,
    program::{Broken, MOST_OUTPUT, Ran},
    result::{as_lines, result_of_ran},
    shown::Shown,
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
pub(crate) const CALL_PATIENCE: Duration = Duration::from_secs(300);
/// The input of all items, bytes: they are kept here until they are done.
const MOST_INPUT: u64 = 256 << 20;
/// What a shell says of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// Runs a program in forks of a VM or a snapshot.
pub(super) async fn run(context: &Context, args: MapArgs) -> Result<(), Failure> {
    if args.detach {
        return detach::start(context, args).await;
    }
    let inputs = inputs(&args)?;
    let reach = context.reach_for(CALL_PATIENCE)?;
    let lease = Lease::take(&reach, args.lease).await?;
    let worked = async {
        let source = source(&reach, &args.source, &lease).await?;
        let job = job(context, &args, source, &lease);
        let front = Here {
            context,
            args: &args,
            shown: Shown::new(context, inputs.len() as u64),
        };
        let items = Items::new(inputs, args.retries, |_| false);
        let engine = Engine::new(&reach, &lease, &job, &front, items);
        let begun = Instant::now();
        engine.carry_out().await?;
        front.shown.tell(begun.elapsed())?;
        let Some(command) = &args.reduce else {
            return Ok(());
        };
        let lines = as_lines(front.shown.results())?;
        let ran = engine.reduce(command, lines).await?;
        front.shown.show_reduced(result_of_ran(0, 1, ran))
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

fn job(context: &Context, args: &MapArgs, source: String, lease: &Lease<'_>) -> Job {
    Job {
        forks: ForkRequest {
            source,
            node: args.node.clone(),
            spread: args.spread,
            constraints: Some(args.constraints.clone().into()),
            labels: [("map".to_owned(), lease.id().to_owned())].into(),
            ..ForkRequest::default()
        },
        argv: args.argv(),
        env: args.settings(),
        user: args.user.clone(),
        limit: context.global.timeout,
        retries: args.retries,
        parallel: args.parallel.map(|at_once| at_once as usize),
        most_output: MOST_OUTPUT,
    }
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

/// A map whose results are printed here.
struct Here<'a> {
    context: &'a Context,
    args: &'a MapArgs,
    shown: Shown<'a>,
}

impl Front for Here<'_> {
    async fn take(&self, result: MapResult) -> Result<(), Failure> {
        self.shown.show(result)
    }

    /// Brings back what was asked for, to a folder of the item's own.
    async fn ended(&self, item: &Item, fork: &Fork, ran: &mut Ran) -> Result<(), Broken> {
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

    async fn may_fork(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn no_room(&self, why: Failure) -> Result<(), Failure> {
        Err(why)
    }

    async fn unreachable(&self, _why: &Failure) -> bool {
        false
    }

    fn reduced_again(&self, why: &str) {
        self.shown
            .progress
            .aside(|| eprintln!("fpagent: --reduce again: {why}"));
    }
}
