//! Arguments about how long things are kept.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use proto::v1::{Keep, keep::HowLong};

use super::{Change, owner::OwnerArg, timeout as longer_than_nothing};

/// Help of `keep`.
pub const KEEP_EXAMPLES: &str = "\
Examples:
  fpagent keep vm demo --ttl 30m
  fpagent keep snapshot golden --ttl 7d
  fpagent keep vm demo --forever

A VM whose time is over is deleted with its disk, also while it runs. A snapshot loses its name, and goes with the last fork of it.";

/// Help of `lease`.
pub const LEASE_EXAMPLES: &str = "\
Examples:
  lease=$(fpagent lease create --ttl 1m -o json | jq -r .id)
  trap \"fpagent lease end $lease\" EXIT
  fpagent fork golden -n 20 --lease $lease
  fpagent lease renew $lease

What is kept by a lease is deleted with it: when it is ended, or when nobody has renewed it for --ttl. So nothing stays of a
client that is gone.";

/// How long something that is made is kept.
#[derive(Debug, Clone, Args)]
pub struct KeepArgs {
    /// Delete it after so long, such as 30m or 2h, also while it runs. Without it, it is kept until somebody deletes it.
    #[arg(long, value_name = "TIME", value_parser = longer_than_nothing)]
    pub ttl: Option<Duration>,
    /// Delete it when this lease ends.
    #[arg(long, value_name = "LEASE", conflicts_with = "ttl")]
    pub lease: Option<String>,
}

impl KeepArgs {
    /// The same for the API.
    pub fn keep(self) -> Option<Keep> {
        let how_long = match (self.ttl, self.lease) {
            (Some(ttl), _) => HowLong::TtlMs(millis(ttl)),
            (None, Some(lease)) => HowLong::Lease(lease),
            (None, None) => return None,
        };
        Some(Keep {
            how_long: Some(how_long),
        })
    }
}

/// Milliseconds, as many as a message can hold.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kept {
    /// A snapshot.
    Snapshot,
    /// A VM.
    Vm,
}

/// Arguments of `keep`.
#[derive(Debug, Args)]
pub struct KeepCommand {
    /// What it is.
    #[arg(value_enum)]
    pub kind: Kept,
    /// Its name or id.
    pub name: String,
    /// See there.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Until somebody deletes it.
    #[arg(long, conflicts_with_all = ["ttl", "lease"], required_unless_present_any = ["ttl", "lease"])]
    pub forever: bool,
    /// See there.
    #[command(flatten)]
    pub change: Change,
}

/// What to do about leases.
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Makes a lease.
    #[command(after_help = "Examples:\n  fpagent lease create --ttl 1m -o json | jq -r .id")]
    Create {
        /// How long it goes on after it was renewed: 10s to 24h.
        #[arg(long, value_name = "TIME", value_parser = longer_than_nothing)]
        ttl: Duration,
        /// See there.
        #[command(flatten)]
        owner: OwnerArg,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Lists leases.
    #[command(after_help = "Examples:\n  fpagent lease ls")]
    Ls,
    /// Has a lease go on.
    #[command(after_help = "Examples:\n  fpagent lease renew 01J9ZK3A")]
    Renew {
        /// Its id.
        lease: String,
    },
    /// Ends a lease, and deletes what is kept by it.
    #[command(after_help = "Examples:\n  fpagent lease end 01J9ZK3A")]
    End {
        /// Its id.
        lease: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}
