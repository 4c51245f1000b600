//! Forking a group: its members are captured at one instant, and the members of each copy go on together, or none of them.
//!
//! Each member's part is an operation of its own in the state, and is carried out as one ([`Run`]) but where they wait for each other. What
//! was captured, and what became of all children, is told in one entry each: so an agent that was lost finds either all parts captured
//! or none, and either all open or none.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::{join_all, try_join_all};
use qemu::{
    capture::{Afterwards, Ticket, together},
    failpoint,
};
use raft::state::{
    ChildResult, Command as Change, Content, Operation, OperationState, Snapshot, State, VmId,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Source, prepare,
    run::{Became, Loaded, Run, became, destroy, failed, go_on, measure},
};
use crate::{
    admission::Need,
    guest::becoming::One,
    node::Node,
    vms::{VmHandle, command::Then, network},
};

/// What a capture says whose machine could have been captured, if another could.
const BY_ANOTHER: &str = "another member of its group";

/// A member's part.
struct Part {
    operation: Arc<Operation>,
    snapshot: Arc<Snapshot>,
    /// The children of which nothing is known yet.
    numbers: Vec<u32>,
}

impl Part {
    fn of(state: &State, run: &Run) -> Result<Self, String> {
        let operation = state.operations.get(&run.operation);
        let operation = operation.ok_or("a part of it is not known any more")?;
        let snapshot = state.snapshots.get(&operation.snapshot);
        let snapshot = snapshot.ok_or("a snapshot of it is not known")?;
        Ok(Self {
            operation: Arc::clone(operation),
            snapshot: Arc::clone(snapshot),
            numbers: run.numbers(state, operation),
        })
    }

    /// The member's name, as it was captured.
    fn name(&self) -> &str {
        &self.snapshot.vm.name
    }
}

/// Carries out all parts of a group's fork.
pub(super) async fn carry_out(
    node: &Arc<Node>,
    runs: &mut [Run],
    cancel: &CancellationToken,
) -> Result<(), String> {
    let state = node.state();
    let parts = runs.iter().map(|run| Part::of(&state, run));
    let parts: Vec<Part> = parts.collect::<Result<_, _>>()?;
    if parts
        .iter()
        .any(|part| part.operation.state != OperationState::Open)
    {
        return Ok(());
    }
    failpoint::reached("group.begun");
    let needs = runs.iter().zip(&parts);
    let needs = needs.map(|(run, part)| run.need(&part.operation, &part.numbers));
    node.admit(needs.fold(Need::default(), |all, one| Need {
        memory: all.memory + one.memory,
        disk: all.disk + one.disk,
    }))?;
    let known: Option<Vec<Content>> = parts
        .iter()
        .map(|part| part.snapshot.content.clone())
        .collect();
    let mut told = None;
    let contents = match known {
        Some(contents) => {
            for ((run, part), content) in runs.iter().zip(&parts).zip(&contents) {
                // What it gives is kept by the children, which are made of it.
                let _kept = run.obtain(&part.snapshot, content).await?;
            }
            contents
        }
        None => {
            let contents = capture(node, &state, runs, &parts).await?;
            failpoint::reached("group.captured");
            let ids = parts.iter().map(|part| part.operation.id);
            let captured = ids.zip(contents.iter().cloned()).collect();
            let context = Arc::clone(node);
            // Beside the loading.
            told = Some(node.tasks.spawn(async move {
                let told = context.report(Change::GroupCaptured { captured }).await;
                failpoint::reached("group.told");
                told
            }));
            contents
        }
    };
    let copies = load(&state, runs, &parts, &contents).await?;
    failpoint::reached("group.loaded");
    if let Some(told) = told
        && let Some(Err(rejection)) = told.await.map_err(|panic| panic.to_string())?
    {
        // It has ended.
        return Err(rejection.to_string());
    }
    if cancel.is_cancelled() {
        return Err("it was cancelled".to_owned());
    }
    let run = &*runs;
    let going_on = copies.into_iter().map(|(number, copy)| {
        let agents: Vec<bool> = contents.iter().map(|content| content.agent).collect();
        let (state, parts) = (&state, &parts);
        async move { (number, copy.go_on(node, state, run, parts, &agents).await) }
    });
    let mut results: Vec<Vec<(u32, ChildResult)>> = parts.iter().map(|_| Vec::new()).collect();
    for (number, of_copy) in join_all(going_on).await {
        for (part, result) in of_copy {
            results[part].push((number, result));
        }
    }
    failpoint::reached("group.runs");
    for results in &results {
        measure(results);
    }
    let ids = parts.iter().map(|part| part.operation.id);
    let results = ids.zip(results).collect();
    node.report(Change::ReportGroup { results }).await;
    failpoint::reached("group.children-told");
    Ok(())
}

/// Captures all members at one instant.
async fn capture(
    node: &Arc<Node>,
    state: &Arc<State>,
    runs: &mut [Run],
    parts: &[Part],
) -> Result<Vec<Content>, String> {
    // Their children's processes start meanwhile.
    let ahead = runs.iter().zip(parts).map(|(run, part)| async {
        let vm = part.operation.vm.ok_or("it has no VM to capture")?;
        prepare(
            node,
            state,
            run.operation,
            Source::Vm(vm),
            part.numbers.clone(),
            part.operation.mode,
        )
        .await
        .map_err(|problem| format!("member {}: {problem}", part.name()))
    });
    let ahead = join_all(ahead).await;
    for (run, prepared) in runs.iter_mut().zip(ahead) {
        match prepared {
            Ok(prepared) => run.prepared = prepared,
            // The capture meets the same problem.
            Err(problem) => tracing::debug!(problem, "nothing could be done ahead of a capture"),
        }
    }
    let tickets: Vec<Ticket> = together(parts.len());
    let captures = runs.iter_mut().zip(parts).zip(tickets);
    let captures = captures.map(|((run, part), ticket)| async move {
        run.capture(state, &part.operation, Afterwards::GoOn, Some(ticket))
            .await
            .map_err(|problem| (part.name(), problem))
    });
    let mut contents = Vec::new();
    let mut problems = Vec::new();
    for captured in join_all(captures).await {
        match captured {
            Ok(content) => contents.push(content),
            Err(problem) => problems.push(problem),
        }
    }
    // Who failed says more than who could not go on without.
    let own = problems
        .iter()
        .find(|(_, problem)| !problem.starts_with(BY_ANOTHER));
    match own.or(problems.first()) {
        None => Ok(contents),
        Some((_, problem)) if problem.starts_with("disk-full: ") => Err(problem.clone()),
        Some((name, problem)) => Err(format!("member {name} could not be captured: {problem}")),
    }
}

/// The members of one copy, by their parts.
#[derive(Default)]
struct Copy {
    loaded: Vec<(usize, Loaded)>,
    failed: Vec<(usize, ChildResult)>,
}

/// Loads the children of all parts, and gives them by copies.
async fn load(
    state: &Arc<State>,
    runs: &mut [Run],
    parts: &[Part],
    contents: &[Content],
) -> Result<BTreeMap<u32, Copy>, String> {
    let loading = runs.iter_mut().zip(parts).zip(contents);
    let loading = loading.map(|((run, part), content)| {
        let Part {
            operation,
            snapshot,
            numbers,
        } = part;
        run.load(state, operation, snapshot, content, numbers.clone())
    });
    let mut copies: BTreeMap<u32, Copy> = BTreeMap::new();
    for (part, (loaded, failed)) in try_join_all(loading).await?.into_iter().enumerate() {
        for one in loaded {
            copies.entry(one.0).or_default().loaded.push((part, one));
        }
        for (number, result) in failed {
            copies
                .entry(number)
                .or_default()
                .failed
                .push((part, result));
        }
    }
    Ok(copies)
}

impl Copy {
    /// Lets all of its members go on, or none: gives what became of each.
    async fn go_on(
        self,
        node: &Arc<Node>,
        state: &Arc<State>,
        runs: &[Run],
        parts: &[Part],
        agents: &[bool],
    ) -> Vec<(usize, ChildResult)> {
        let mut results = self.failed;
        if let Some((part, result)) = results.first() {
            let problem = why(&parts[*part], &result.error);
            results.extend(give_up(self.loaded, &problem).await);
            return results;
        }
        let plugging = self.loaded.iter().map(|(part, (_, id, _, handle))| async {
            let plugged = plug(node, state, *id, handle).await;
            plugged.map_err(|problem| why(&parts[*part], &problem))
        });
        if let Err(problem) = try_join_all(plugging).await {
            return give_up(self.loaded, &problem).await;
        }
        failpoint::reached("group.plugged");
        // All of them count before the first goes on.
        let going_on = self.loaded.iter().map(|(part, (_, id, paused, handle))| {
            let one = node.vms.becoming().one();
            async move {
                let went_on = go_on(handle, *id, 1, Then::unless_paused(*paused)).await;
                let went_on = went_on.map_err(|problem| why(&parts[*part], &problem));
                (one, went_on)
            }
        });
        // Each to its end: what runs must be known.
        let went_on: Vec<(One, Result<Instant, String>)> = join_all(going_on).await;
        let problem = went_on
            .iter()
            .find_map(|(_, went_on)| went_on.clone().err());
        if let Some(problem) = problem {
            return give_up(self.loaded, &problem).await;
        }
        let becoming = self.loaded.into_iter().zip(went_on);
        let becoming = becoming.map(|((part, (_, id, paused, handle)), (one, at))| async move {
            let became = match state.vms.get(&id) {
                Some(child) if agents[part] && !paused => {
                    node.introduce(state, child, 1);
                    became(&handle, id, 1, one).await
                }
                _ => Became::default(),
            };
            // A problem was looked for above.
            let at = at.unwrap_or_else(|_| Instant::now());
            (part, runs[part].went_on(at, became))
        });
        join_all(becoming).await
    }
}

/// Has a child be on the network of its copy.
async fn plug(node: &Node, state: &State, id: VmId, handle: &VmHandle) -> Result<(), String> {
    let child = state.vms.get(&id);
    let group = child.and_then(|child| child.group.as_ref());
    let group = group.ok_or("it was deleted while it was being made")?;
    network::plug(node, id, handle, group).await
}

/// What became of the members of a copy that does not come to be.
async fn give_up(loaded: Vec<(usize, Loaded)>, problem: &str) -> Vec<(usize, ChildResult)> {
    let ending = loaded
        .into_iter()
        .map(|(part, (_, _, _, handle))| async move {
            destroy(&handle).await;
            (part, failed(problem.to_owned()))
        });
    join_all(ending).await
}

/// Why a copy failed: by which member.
fn why(part: &Part, problem: &str) -> String {
    format!("the copy of member {}: {problem}", part.name())
}
