//! `fpagent recover`: a node goes on alone after a quorum was lost, or follows one that did. On disk only.

use std::path::Path;

use serde::Serialize;
use ulid::Ulid;

use crate::{
    client::{Context, args::recovery::RecoverArgs, failure::Failure, views::recovery::HeldView},
    recovery::StoppedNode,
    trust::identity::DataDir,
};

/// What is said of a node's directory, and what became of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Recovered<'a> {
    /// What the node had; absent where that cannot be read.
    had: Option<&'a HeldView>,
    /// Whether anything was changed.
    done: bool,
    /// The incarnation that it is in now.
    incarnation: String,
}

const NOT_DONE: &str = "nothing was changed; read the above, and add --yes to do it";

pub(crate) fn run(context: &Context, args: RecoverArgs) -> Result<(), Failure> {
    let mut node = StoppedNode::open(DataDir::new(&args.data_dir))?;
    match args.follow {
        Some(incarnation) => follow(context, &args, &mut node, incarnation),
        None => go_on_alone(context, &args, &mut node),
    }
}

/// What is to be done once a node goes on as the only voter.
pub(super) fn say_what_is_next(
    context: &Context,
    data_dir: &Path,
    incarnation: Ulid,
) -> Result<(), Failure> {
    context.say(format_args!(
        "  start it             fpagent run --data-dir {}",
        data_dir.display()
    ))?;
    context.say(format_args!(
        "  on others left       fpagent recover --data-dir DIR --follow {incarnation} --yes"
    ))?;
    context.say(
        "  those that are lost  fpagent node rm NODE --force; never start them with their old directories",
    )
}

fn go_on_alone(
    context: &Context,
    args: &RecoverArgs,
    node: &mut StoppedNode,
) -> Result<(), Failure> {
    let held = node.look()?;
    let view = HeldView::new(&node.identity, &held);
    let may = node.may_go_on_alone(&held);
    if let (Ok(()), true) = (&may, args.yes) {
        let incarnation = node.go_on_alone(&held)?;
        if !context.for_people() {
            return tell(context, Some(&view), true, incarnation);
        }
        context.lines(&view.lines())?;
        context.say(format_args!(
            "\n{} is the only voter of the cluster from now on, with what is said above.",
            view.name
        ))?;
        say_what_is_next(context, &args.data_dir, incarnation)?;
        return context.say("  let others join      fpagent token create");
    }
    if !context.for_people() {
        tell(context, Some(&view), false, node.identity.incarnation)?;
    } else {
        context.lines(&view.lines())?;
        if may.is_ok() {
            context.say(format_args!("\n{}", WARNING.replace("NODE", &view.name)))?;
        }
    }
    may?;
    Err(Failure::refused(
        format!("{} would go on alone", view.name),
        NOT_DONE,
    ))
}

const WARNING: &str = "\
With --yes NODE becomes the only voter of its cluster, with what is said above.
  Do it only when most voters are lost for good: a majority that still runs is another cluster from then on.
  Do it on the node whose log is newest, greater term first, then greater index: what others have and it has not is lost,
  also what was acknowledged. Entries that were not known to be committed count as done.
  Lost with that may be: VMs, snapshots and images that were made last (on nodes that are left they stay, unknown to the cluster),
  deletions, revoked certificates (`fpagent cert ls`). Join tokens are gone in any case.
  The other voters must not be started again as they are: those that are left follow (--follow), or are emptied and join anew.";

fn follow(
    context: &Context,
    args: &RecoverArgs,
    node: &mut StoppedNode,
    incarnation: Ulid,
) -> Result<(), Failure> {
    // Only for being told: a node without a log that can be read may follow.
    let looked = node.look();
    let view = looked
        .as_ref()
        .ok()
        .map(|held| HeldView::new(&node.identity, held));
    let name = node.identity.name.clone();
    if context.for_people() {
        match (&view, looked) {
            (Some(view), _) => context.lines(&view.lines())?,
            (None, Err(error)) => context.say(Failure::from(error).message())?,
            (None, Ok(_)) => {}
        }
    }
    if !args.yes {
        match context.for_people() {
            true => context.say(format_args!(
                "\nWith --yes {name} follows the incarnation {incarnation}: what its log has and that one has not is given up. Its VMs stay, \
                 those that\nthe cluster does not know then, too."
            ))?,
            false => tell(context, view.as_ref(), false, node.identity.incarnation)?,
        }
        return Err(Failure::refused(
            format!("{name} would follow {incarnation}"),
            NOT_DONE,
        ));
    }
    node.follow(incarnation)?;
    if !context.for_people() {
        return tell(context, view.as_ref(), true, incarnation);
    }
    context.say(format_args!(
        "\n{name} follows the incarnation {incarnation}."
    ))?;
    context.say(format_args!(
        "  start it            fpagent run --data-dir {}",
        args.data_dir.display()
    ))
}

fn tell(
    context: &Context,
    had: Option<&HeldView>,
    done: bool,
    incarnation: Ulid,
) -> Result<(), Failure> {
    context.data(&Recovered {
        had,
        done,
        incarnation: incarnation.to_string(),
    })
}
