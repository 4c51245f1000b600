//! `fpagent restore`: a node goes on with a backup: one that was there, or a new one. On disk only.

use raft::state::Users;
use serde::Serialize;
use ulid::Ulid;

use super::{backup::load, init::check_args, recover};
use crate::{
    backup::Backup,
    client::{
        Context,
        args::{cluster::InitArgs, recovery::RestoreArgs},
        failure::Failure,
        views::recovery::BackupView,
    },
    recovery::{self, NewNode, StoppedNode},
    trust::{authority::Authority, identity::DataDir, replacement::Known},
};

/// What a directory was restored to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Restored<'a> {
    /// What is in the backup.
    backup: &'a BackupView,
    /// Whether anything was changed.
    done: bool,
    /// The node's number.
    node_id: u64,
    /// Its name.
    name: &'a str,
    /// The incarnation that it is in now.
    incarnation: String,
}

pub(crate) fn run(context: &Context, args: RestoreArgs) -> Result<(), Failure> {
    let (backup, size) = load(&args.file)?;
    let view = BackupView::new(&backup, size);
    let users = match args.keep_certificates {
        true => Users::Keep,
        false => Users::Revoke,
    };
    let data = DataDir::new(&args.data_dir);
    match (data.identity()?, &args.name) {
        (Some(_), None) => here(context, &args, data, &backup, &view, users),
        (Some(identity), Some(_)) => Err(Failure::usage(
            format!(
                "{} holds the node {} already",
                args.data_dir.display(),
                identity.name
            ),
            "leave --name and --listen out to put the state back there, or choose another --data-dir",
        )),
        (None, Some(_)) => anew(context, &args, data, &backup, &view, users),
        (None, None) => Err(Failure::usage(
            format!("{} holds no node", args.data_dir.display()),
            "name the new one with --name and --listen, or choose the --data-dir of one that is left",
        )),
    }
}

/// Into the directory of a node.
fn here(
    context: &Context,
    args: &RestoreArgs,
    data: DataDir,
    backup: &Backup,
    view: &BackupView,
    users: Users,
) -> Result<(), Failure> {
    let mut node = StoppedNode::open(data)?;
    let (id, name) = (node.identity.node, node.identity.name.clone());
    if !args.yes {
        match context.for_people() {
            true => {
                context.lines(&view.lines())?;
                context.say(format_args!("\n{}", WARNING.replace("NODE", &name)))?;
            }
            false => tell(context, view, false, id, &name, node.identity.incarnation)?,
        }
        return Err(Failure::refused(
            format!("{name} would be put back to this"),
            "nothing was changed; read the above, and add --yes to do it",
        ));
    }
    let incarnation = node.restore(backup, users)?;
    if !context.for_people() {
        return tell(context, view, true, id, &name, incarnation);
    }
    context.lines(&view.lines())?;
    context.say(format_args!(
        "\n{name} goes on with this backup, as the only voter of the cluster."
    ))?;
    say_what_is_next(context, args, incarnation, users)
}

const WARNING: &str = "\
With --yes NODE goes on with this backup as the only voter of the cluster, whatever it knows that is newer.
  What was done since the backup is not known any more. VMs, snapshots and images of that time stay where they are: VMs run on, unknown
  to the cluster (`fpagent doctor`). VMs that were deleted since are shown as failed.
  The log of now stays in the data directory, unused.";

/// Into an empty directory.
fn anew(
    context: &Context,
    args: &RestoreArgs,
    data: DataDir,
    backup: &Backup,
    view: &BackupView,
    users: Users,
) -> Result<(), Failure> {
    let node = InitArgs {
        data_dir: args.data_dir.clone(),
        name: args.name.clone().unwrap_or_default(),
        listen: args.listen.clone().unwrap_or_default(),
        advertise: args.advertise.clone(),
    };
    let new = NewNode {
        advertise: check_args(&node)?,
        name: node.name,
        listen: node.listen,
    };
    let authority = authority(args, backup)?;
    let known = match &args.authority {
        Some(certs) => Known::load(certs)?,
        None => None,
    };
    data.check(None, &new.name)?;
    let identity = recovery::restore_new(&data, new, backup, authority, known, users)?;
    if !context.for_people() {
        let (id, name) = (identity.node, &identity.name);
        return tell(context, view, true, id, name, identity.incarnation);
    }
    context.lines(&view.lines())?;
    context.say(format_args!(
        "\n{} is node {} and the only voter of the cluster, which goes on with this backup.",
        identity.name, identity.node
    ))?;
    context.say(format_args!(
        "  use it from afar     --addr https://{} --certs {}",
        identity.advertise,
        data.admin_certs().display()
    ))?;
    say_what_is_next(context, args, identity.incarnation, users)
}

fn authority(args: &RestoreArgs, backup: &Backup) -> Result<Authority, Failure> {
    let found = match &args.authority {
        Some(certs) => Some(recovery::authority_in(backup, certs)?),
        None => recovery::authority_of(backup)?,
    };
    found.ok_or_else(|| {
        Failure::refused(
            "the backup does not have the authority's private key, and without it no node can be made that the others and the users trust",
            "name the folder `certs` of any node that is left with --authority, or restore in a data directory that is left of one",
        )
    })
}

fn say_what_is_next(
    context: &Context,
    args: &RestoreArgs,
    incarnation: Ulid,
    users: Users,
) -> Result<(), Failure> {
    recover::say_what_is_next(context, &args.data_dir, incarnation)?;
    match users {
        Users::Keep => Ok(()),
        Users::Revoke => context.say(
            "  users                their certificates are revoked: fpagent cert create, on this host",
        ),
    }
}

fn tell(
    context: &Context,
    backup: &BackupView,
    done: bool,
    node_id: u64,
    name: &str,
    incarnation: Ulid,
) -> Result<(), Failure> {
    context.data(&Restored {
        backup,
        done,
        node_id,
        name,
        incarnation: incarnation.to_string(),
    })
}
