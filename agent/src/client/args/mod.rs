//! The command line: what can be typed. Names and options are a contract that scripts hold on to.

pub mod cluster;
pub mod event;
pub mod group;
pub mod guest;
pub mod keep;
pub mod map;
pub mod objects;
pub mod owner;
pub mod recovery;
pub mod work;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ulid::Ulid;

use self::{
    cluster::{AuthorityCommand, CertCommand, InitArgs, JoinArgs, NodeCommand, TokenCommand},
    event::EventsArgs,
    group::GroupCommand,
    keep::{KeepCommand, LeaseCommand},
    map::{MapArgs, MapsCommand},
    objects::{
        ConsoleArgs, ForkArgs, ImageCommand, LogsArgs, OperationCommand, SnapshotCommand, TreeArgs,
        VmCommand,
    },
    owner::{QuotaCommand, ShareArgs},
    recovery::{BackupArgs, RecoverArgs, RestoreArgs},
    work::{CpArgs, ExecArgs, ForwardArgs},
};
use super::{reach::Address, units};
use crate::daemon::options::RunOptions;

const EXAMPLES: &str = "\
Examples:
  fpagent init --data-dir /var/lib/fpagent --name host-a --listen 10.0.0.1:7400
  fpagent run --data-dir /var/lib/fpagent
  fpagent vm create demo --image tiny --wait
  fpagent fork demo -n 3
  fpagent tree

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 cluster not reachable, 124 timed out; `vm wait --for exit`: the guest's.";

/// Forks running virtual machines in milliseconds: the agent of a host, and its command line.
#[derive(Debug, Parser)]
#[command(name = "fpagent", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Agents to ask, tried in turn: unix:///PATH or https://HOST:PORT, comma-separated.
    #[arg(
        long,
        global = true,
        env = "FPAGENT_ADDR",
        value_name = "ADDR",
        value_delimiter = ',',
        default_value = "unix:///run/fpagent/agent.sock"
    )]
    pub addr: Vec<Address>,
    /// Folder with ca.pem, cert.pem and key.pem, for https addresses.
    #[arg(long, global = true, env = "FPAGENT_CERTS", value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// How the result is printed.
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t
    )]
    pub output: Format,
    /// How long to wait for the answer, such as 30s or 5m [default: 60s]. Of `exec` and `map`: how long the program may take.
    #[arg(long, global = true, value_name = "TIME", value_parser = timeout)]
    pub timeout: Option<Duration>,
}

impl Global {
    /// How long to wait for an answer.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(60))
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// An object, or for a list one with `items`.
    Json,
    /// The same as YAML.
    Yaml,
}

/// For commands that change something.
#[derive(Debug, Clone, Args)]
pub struct Change {
    /// Makes it safe to repeat the command: under the same id it happens once. Chosen by itself when not given.
    #[arg(long, value_name = "ID", value_parser = request_id)]
    request_id: Option<String>,
}

impl Change {
    /// The id for the request: the user's, or a new one.
    pub fn id(&self) -> String {
        self.request_id
            .clone()
            .unwrap_or_else(|| Ulid::new().to_string())
    }

    /// The id for the n-th of several requests that one command makes.
    pub fn id_of(&self, index: usize, count: usize) -> String {
        if count == 1 {
            self.id()
        } else {
            format!("{}-{index}", self.id())
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves this host: the daemon.
    #[command(after_help = "\
Examples:
  fpagent run --data-dir /var/lib/fpagent
  fpagent run --data-dir /var/lib/fpagent --log-format json
  fpagent run --data-dir /var/lib/fpagent --listen 10.0.0.9:7400

SIGTERM ends it in order. Its VMs run on; the next start finds them again. A host that has another address says so
once, with --listen or --advertise: the others find it there, and its certificate stays good.")]
    Run(Box<RunOptions>),
    /// Shows files while they come from other nodes. The agent starts it.
    #[command(
        hide = true,
        after_help = "\
Examples:
  fpagent page-server --data-dir /var/lib/fpagent

It is given a listening socket as descriptor 3."
    )]
    PageServer {
        /// The agent's data directory.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Stops VMs that may run elsewhere by now. The agent starts it.
    #[command(
        hide = true,
        after_help = "\
Examples:
  fpagent watchdog

It is given a listening socket as descriptor 3."
    )]
    Watchdog,
    /// Hands on what members of groups send each other. The agent starts it.
    #[command(
        hide = true,
        after_help = "\
Examples:
  fpagent switch --user 200002 --group 200002

It is given a listening socket as descriptor 3."
    )]
    Switch {
        /// The user that it runs as.
        #[arg(long, value_name = "UID", requires = "group")]
        user: Option<u32>,
        /// That user's group.
        #[arg(long, value_name = "GID", requires = "user")]
        group: Option<u32>,
    },
    /// Makes the first node of a new cluster.
    #[command(after_help = cluster::INIT_EXAMPLES)]
    Init(InitArgs),
    /// Makes this host a node of a cluster that is there.
    #[command(after_help = cluster::JOIN_EXAMPLES)]
    Join(JoinArgs),
    /// Has a node go on alone when most voters are lost for good, or follow one that did.
    #[command(after_help = recovery::RECOVER_EXAMPLES)]
    Recover(RecoverArgs),
    /// Keeps what the cluster knows in a file.
    #[command(after_help = recovery::BACKUP_EXAMPLES)]
    Backup(BackupArgs),
    /// Has a node, or a new one, go on with a backup.
    #[command(after_help = recovery::RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
    /// Tokens that let hosts join.
    #[command(subcommand, after_help = cluster::TOKEN_EXAMPLES)]
    Token(TokenCommand),
    /// Certificates that let people and programs use the cluster.
    #[command(subcommand, after_help = cluster::CERT_EXAMPLES)]
    Cert(CertCommand),
    /// The authority that all certificates are of, and its replacement.
    #[command(subcommand, after_help = cluster::AUTHORITY_EXAMPLES)]
    Authority(AuthorityCommand),
    /// Tells how this node and the cluster are, and what is wrong.
    #[command(after_help = "\
Examples:
  fpagent status
  fpagent status -o json --addr https://10.0.0.2:7400 --certs ./admin")]
    Status,
    /// Checks the agent's host, with a hint for everything that is not as it should be.
    #[command(after_help = "\
Examples:
  fpagent doctor
  fpagent doctor -o json

Ends with 1 when a check failed.")]
    Doctor,
    /// The hosts of the cluster.
    #[command(subcommand, after_help = cluster::NODE_EXAMPLES)]
    Node(NodeCommand),
    /// What VMs are started from.
    #[command(subcommand, after_help = objects::IMAGE_EXAMPLES)]
    Image(ImageCommand),
    /// Virtual machines.
    #[command(subcommand, after_help = objects::VM_EXAMPLES)]
    Vm(VmCommand),
    /// Makes running copies of a running VM, or of a snapshot.
    #[command(after_help = objects::FORK_EXAMPLES)]
    Fork(ForkArgs),
    /// VMs with a network between them, that are forked together.
    #[command(subcommand, after_help = group::GROUP_EXAMPLES)]
    Group(GroupCommand),
    /// Runs a program in a VM.
    #[command(after_help = work::EXEC_EXAMPLES)]
    Exec(ExecArgs),
    /// Runs a program in many forks at once, and gathers what comes of it.
    #[command(after_help = map::MAP_EXAMPLES)]
    Map(Box<MapArgs>),
    /// Maps that are left to the cluster.
    #[command(subcommand, after_help = map::MAPS_EXAMPLES)]
    Maps(MapsCommand),
    /// Copies files into a VM, or out of it.
    #[command(after_help = work::CP_EXAMPLES)]
    Cp(CpArgs),
    /// Makes TCP ports of a VM ports here, until it is ended.
    #[command(after_help = work::FORWARD_EXAMPLES)]
    Forward(ForwardArgs),
    /// Moments of a VM that were kept.
    #[command(subcommand, after_help = objects::SNAPSHOT_EXAMPLES)]
    Snapshot(SnapshotCommand),
    /// Draws who was forked from whom.
    #[command(after_help = objects::TREE_EXAMPLES)]
    Tree(TreeArgs),
    /// Says how long a VM or a snapshot is kept.
    #[command(after_help = keep::KEEP_EXAMPLES)]
    Keep(KeepCommand),
    /// What a client holds while it is there, and what it made goes with.
    #[command(subcommand, after_help = keep::LEASE_EXAMPLES)]
    Lease(LeaseCommand),
    /// Says who else sees and uses an image, a snapshot or a VM.
    #[command(after_help = owner::SHARE_EXAMPLES)]
    Share(ShareArgs),
    /// How much owners may have.
    #[command(subcommand, after_help = owner::QUOTA_EXAMPLES)]
    Quota(QuotaCommand),
    /// Long work: captures and forks.
    #[command(subcommand, after_help = objects::OPERATION_EXAMPLES)]
    Op(OperationCommand),
    /// Tells what happens in the cluster.
    #[command(after_help = event::EVENTS_EXAMPLES)]
    Events(EventsArgs),
    /// Prints what a VM wrote on its console.
    #[command(after_help = objects::LOGS_EXAMPLES)]
    Logs(LogsArgs),
    /// Opens a VM's serial console. Ctrl-] leaves.
    #[command(after_help = objects::CONSOLE_EXAMPLES)]
    Console(ConsoleArgs),
    /// Prints a script that completes commands in a shell.
    #[command(after_help = "\
Examples:
  fpagent completion bash > /etc/bash_completion.d/fpagent
  source <(fpagent completion zsh)")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn timeout(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text)? {
        Duration::ZERO => Err("must be longer than 0".to_owned()),
        timeout => Ok(timeout),
    }
}

fn request_id(text: &str) -> Result<String, String> {
    let right = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    // Some room is left for the number that is added when one command makes several requests.
    if (1..=58).contains(&text.len()) && text.bytes().all(right) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 58 letters, digits, '-' or '_'".to_owned())
    }
}

/// Reads `KEY=VALUE`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests;
