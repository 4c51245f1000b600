//! Arguments of the commands about nodes and trust.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use proto::v1;

use super::Change;
use crate::client::units::parse_duration;

/// Help of `init`.
pub const INIT_EXAMPLES: &str = "\
Examples:
  fpagent init --data-dir /var/lib/fpagent --name host-a --listen 10.0.0.1:7400
  fpagent init --data-dir /var/lib/fpagent --name host-a --listen 0.0.0.0:7400 --advertise host-a.example:7400

Then start it with `fpagent run`, and let others in with `fpagent token create`.";

/// Help of `join`.
pub const JOIN_EXAMPLES: &str = "\
Examples:
  fpagent join --data-dir /var/lib/fpagent --name host-b --listen 10.0.0.2:7400 --token fpjoin1.…
  fpagent join --data-dir /var/lib/fpagent --name host-b --listen 10.0.0.2:7400 --token - < token.txt

Then start it with `fpagent run`, while the token is valid or within an hour: a host that does not start is forgotten.
A directory that belongs to the cluster already is left as it is. When it fails it leaves nothing behind, here or in
the cluster, and can be tried again with the same token.";

/// Help of `token`.
pub const TOKEN_EXAMPLES: &str = "\
Examples:
  fpagent token create --ttl 10m
  fpagent token ls
  fpagent token revoke 01J9ZK3A7Q8T4W0000000000AB";

/// Help of `cert`.
pub const CERT_EXAMPLES: &str = "\
Examples:
  fpagent cert create ann --role operator
  fpagent vm ls --addr https://10.0.0.1:7400 --certs ./ann
  fpagent cert ls
  fpagent cert revoke ann

Roles: a viewer looks; an operator also works with images, VMs, snapshots and forks; an admin does everything. The first two see what
belongs to their owner and what others share; an admin sees all. The Unix socket is an admin of the owner `admin`.";

/// Help of `authority`.
pub const AUTHORITY_EXAMPLES: &str = "\
Examples:
  fpagent authority show
  fpagent authority replace
  fpagent cert create ann --role operator --replace
  fpagent authority finish --yes

VMs run on, and so does the cluster. docs/authority.md tells what to do when the key leaked, or its end is near.";

/// Help of `node`.
pub const NODE_EXAMPLES: &str = "\
Examples:
  fpagent node ls -o wide
  fpagent node label host-b zone=west old-
  fpagent node cordon host-b
  fpagent node drain host-b
  fpagent node rm host-b

Those that vote are spread over the zones that the label `zone` names.";

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where the node keeps what it has; made when it is missing.
    #[arg(long, value_name = "DIR", env = "FPAGENT_DATA_DIR")]
    pub data_dir: PathBuf,
    /// The node's name in the cluster.
    #[arg(long)]
    pub name: String,
    /// Where the agent listens.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: String,
    /// Where others reach it, when that is not where it listens.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
}

/// Arguments of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The same as for `init`.
    #[command(flatten)]
    pub node: InitArgs,
    /// What `fpagent token create` printed; `-` reads it from standard input, where no process list shows it.
    #[arg(long, env = "FPAGENT_TOKEN", hide_env_values = true)]
    pub token: String,
}

/// What to do about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Makes a token that lets one host join. It is shown once.
    #[command(
        after_help = "Examples:\n  fpagent token create --ttl 10m\n  TOKEN=$(fpagent token create)"
    )]
    Create {
        /// How long it can be used.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Lists the tokens that can still be used.
    #[command(after_help = "Examples:\n  fpagent token ls -o json")]
    Ls,
    /// Makes a token useless.
    #[command(after_help = "Examples:\n  fpagent token revoke 01J9ZK3A7Q8T4W0000000000AB")]
    Revoke {
        /// Its id, as `token ls` shows it.
        id: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// What to do about certificates.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Makes a key here and has the cluster sign a certificate for it: into a folder that `--certs` takes.
    #[command(
        after_help = "Examples:\n  fpagent cert create ann --role operator\n  fpagent cert create bob --role operator --owner team-b\n  fpagent cert create ci --role viewer --ttl 12h --out /etc/ci/certs\n  fpagent cert create ann --role operator --replace --out ann-new"
    )]
    Create {
        /// Whose it is: no other certificate that is valid has this name.
        name: String,
        /// What it allows.
        #[arg(long)]
        role: Role,
        /// Whose VMs, images and snapshots are there for it; several certificates may have one owner. Without it those of its name.
        #[arg(
            long,
            value_name = "OWNER",
            default_value = "",
            hide_default_value = true
        )]
        owner: String,
        /// How long it is valid, at most a year.
        #[arg(long, value_name = "TIME", default_value = "90d", value_parser = parse_duration)]
        ttl: Duration,
        /// The folder, which is made: ca.pem, cert.pem, key.pem. Without it the name, here.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Revokes the one of this name that is valid, at once.
        #[arg(long)]
        replace: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Lists the certificates that have not expired.
    #[command(after_help = "Examples:\n  fpagent cert ls -o json")]
    Ls,
    /// Makes a certificate useless, at once and on all nodes.
    #[command(after_help = "Examples:\n  fpagent cert revoke ann")]
    Revoke {
        /// Its owner's name, or its id, as `cert ls` shows them.
        certificate: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// What to do about the authority.
#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Tells which authority signs, when it ends, how far its replacement is, and which node has which.
    #[command(after_help = "Examples:\n  fpagent authority show\n  fpagent authority show -o json")]
    Show,
    /// Begins to put a new authority in the place of the one there is. Nodes carry it out by themselves.
    #[command(after_help = "\
Examples:
  fpagent authority replace
  fpagent authority replace --compromised

With --compromised all join tokens and people's certificates of the old authority end at once, the caller's too: use the
Unix socket of a node.")]
    Replace {
        /// Somebody else may have the key: what it signed counts no more, but for the certificates of the known nodes.
        #[arg(long)]
        compromised: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Ends the trust in the authority that was replaced. Without --yes it only tells what that ends.
    #[command(after_help = "\
Examples:
  fpagent authority finish
  fpagent authority finish --yes
  fpagent authority finish --force --yes

Refused while a node is not renewed. A node that --force gives up is refused from then on: it has to be removed, and to
join anew.")]
    Finish {
        /// Gives up nodes that are not renewed.
        #[arg(long)]
        force: bool,
        /// Does it.
        #[arg(long)]
        yes: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Look.
    Viewer,
    /// Work with images, VMs, snapshots and forks.
    Operator,
    /// Everything: also who belongs to the cluster, and who may do what in it.
    Admin,
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

/// What to do about nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Lists all nodes.
    #[command(after_help = "Examples:\n  fpagent node ls\n  fpagent node ls -o json")]
    Ls,
    /// Shows one node.
    #[command(after_help = "Examples:\n  fpagent node show host-a")]
    Show {
        /// Its name or id.
        node: String,
    },
    /// Sets labels (KEY=VALUE) and removes them (KEY-).
    #[command(
        after_help = "Examples:\n  fpagent node label host-b rack=7 zone=west\n  fpagent node label host-b rack-"
    )]
    Label {
        /// Its name or id.
        node: String,
        /// KEY=VALUE sets one, KEY- removes it.
        #[arg(required = true, value_name = "LABEL", value_parser = label_change)]
        labels: Vec<LabelChange>,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Keeps new VMs away from a node. Those that are there stay.
    #[command(after_help = "Examples:\n  fpagent node cordon host-b")]
    Cordon {
        /// Its name or id.
        node: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Moves all VMs of a node to others, some at a time, and keeps new ones away from it.
    #[command(after_help = "\
Examples:
  fpagent node drain host-b
  fpagent node drain host-b --no-wait
  fpagent node drain host-b --suspend && systemctl reboot
  fpagent node show host-b
  fpagent node uncordon host-b

It goes on by itself, whatever happens to this command, until `uncordon`. Ends with 1 when a VM could not be moved, and names it; asked for
again, it is tried again. Snapshots that only this node holds stay there: it names them, too. Refused when no majority of the nodes that vote
would be there without it: switched off, it would leave a cluster that can change nothing. VMs run on even then.

With --suspend they stay: each goes to disk at its moment, and goes on from there when its host was restarted and the agent is back. What was
stopped or suspended before stays so.")]
    Drain {
        /// Its name or id.
        node: String,
        /// Drain it also when no majority of the nodes that vote would be there without it.
        #[arg(long)]
        force: bool,
        /// Suspend them there instead of moving them; they go on when the host was restarted, or the node is uncordoned.
        #[arg(long)]
        suspend: bool,
        /// Do not wait until its VMs are elsewhere, or suspended.
        #[arg(long)]
        no_wait: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Allows new VMs on a node again, and ends that it is drained.
    #[command(after_help = "Examples:\n  fpagent node uncordon host-b")]
    Uncordon {
        /// Its name or id.
        node: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Removes a node from the cluster, for good: one that runs, one that is gone, or the leader.
    #[command(after_help = "\
Examples:
  fpagent node rm host-b
  fpagent node rm host-b --force

Refused while only that node has VMs, snapshots or images, which --force gives up. Its agent ends, and so do the VMs
that were given up; their files stay on its host. Its data directory cannot be used again. A host that lost its disk
is removed with --force, and joins again with a new token.")]
    Rm {
        /// Its name or id.
        node: String,
        /// Gives up what only that node has: its VMs, and snapshots and images whose files are nowhere else.
        #[arg(long)]
        force: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// A label to set or to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelChange {
    /// `KEY=VALUE`
    Set(String, String),
    /// `KEY-`
    Remove(String),
}

pub(super) fn label_change(text: &str) -> Result<LabelChange, String> {
    match (super::label(text), text.strip_suffix('-')) {
        (Ok((key, value)), _) => Ok(LabelChange::Set(key, value)),
        (Err(_), Some(key)) if !key.is_empty() => Ok(LabelChange::Remove(key.to_owned())),
        _ => Err(format!("{text:?} is neither KEY=VALUE nor KEY-")),
    }
}
