//! Arguments of the commands for when a cluster cannot go on by itself, and for what is kept against that.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ulid::Ulid;

/// Help of `recover`.
pub const RECOVER_EXAMPLES: &str = "\
Examples:
  fpagent recover --data-dir /var/lib/fpagent            what this node has, and what would be done; changes nothing
  fpagent recover --data-dir /var/lib/fpagent --yes      go on alone with that
  fpagent recover --data-dir /var/lib/fpagent --follow 01J9ZK3A7Q8T4W0000000000AB --yes

For when most voters are lost for good. End the agents first; VMs run on. Ask every node that is left what it has, and let the one
whose log is newest go on alone: greater term first, then greater index. The others follow it, each once, with what it printed.
docs/recovery.md tells all of it.";

/// Help of `backup`.
pub const BACKUP_EXAMPLES: &str = "\
Examples:
  fpagent backup /var/backups/cluster.fpbackup
  fpagent backup --with-authority /root/cluster.fpbackup
  fpagent backup - | ssh elsewhere 'cat > cluster.fpbackup'
  fpagent backup check /var/backups/cluster.fpbackup

It has what the cluster knows: nodes, VMs, snapshots, images, certificates. Disks and memory of VMs stay on their nodes.";

/// Help of `restore`.
pub const RESTORE_EXAMPLES: &str = "\
Examples:
  fpagent restore cluster.fpbackup --data-dir /var/lib/fpagent          what would be done to a node's directory; changes nothing
  fpagent restore cluster.fpbackup --data-dir /var/lib/fpagent --yes    put the state back there; its VMs are taken up again
  fpagent restore cluster.fpbackup --data-dir /var/lib/fpagent --name host-x --listen 10.0.0.9:7400     on a new host

End the agents first. Other nodes that are left follow with `fpagent recover --follow`. VMs that are newer than the backup run on.
docs/recovery.md tells all of it.";

/// Arguments of `recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The node's data directory. Its agent must not run.
    #[arg(long, value_name = "DIR", env = "FPAGENT_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Follows a node that went on alone, or was restored, into this incarnation. What only this node's log has is given up.
    #[arg(long, value_name = "INCARNATION")]
    pub follow: Option<Ulid>,
    /// Does it. Without this nothing is changed.
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BackupArgs {
    /// What to do with one that is there.
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// Where to write it, for its owner only; `-` for standard output. What is there is replaced once the backup is whole.
    #[arg(required = true, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Puts the authority's private key into it: without, restoring needs a data directory that is left of a node. Whoever has it is let
    /// in as anybody.
    #[arg(long)]
    pub with_authority: bool,
}

/// What to do with a backup.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Checks a backup, and tells what is in it.
    #[command(
        after_help = "Examples:\n  fpagent backup check cluster.fpbackup\n  fpagent backup check - < cluster.fpbackup"
    )]
    Check {
        /// The file; `-` for standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup; `-` for standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// A node's data directory, or one for a new node.
    #[arg(long, value_name = "DIR", env = "FPAGENT_DATA_DIR")]
    pub data_dir: PathBuf,
    /// The new node's name: one that no node in the backup has.
    #[arg(long, requires = "listen")]
    pub name: Option<String>,
    /// Where the new node's agent listens.
    #[arg(long, value_name = "HOST:PORT", requires = "name")]
    pub listen: Option<String>,
    /// Where others reach it, when that is not where it listens.
    #[arg(long, value_name = "HOST:PORT", requires = "name")]
    pub advertise: Option<String>,
    /// For a new node: the folder `certs` of a node that is left, with the authority's key, when the backup has none.
    #[arg(long, value_name = "DIR", requires = "name")]
    pub authority: Option<PathBuf>,
    /// Leaves users' certificates as good as they were when the backup was made. Without this all are revoked: nobody remembers which were
    /// since.
    #[arg(long)]
    pub keep_certificates: bool,
    /// Does it to a directory that holds a node. Without this nothing is changed there.
    #[arg(long)]
    pub yes: bool,
}
