//! Arguments of the commands about owners: who else sees an object, and how much an owner may have.

use clap::{Args, Subcommand, ValueEnum};

use super::Change;
use crate::client::units::parse_size;

/// Help of `share`.
pub const SHARE_EXAMPLES: &str = "\
Examples:
  fpagent share image tiny --with everyone
  fpagent share snapshot golden --with team-b
  fpagent share vm web --with ann
  fpagent share vm web --with ann --stop

Who it is shared with sees it, as OWNER/NAME or by its name alone, and uses it as the role allows: makes VMs from an image, forks a
snapshot or a VM, works in a VM. To change, delete and share it stays the owner's and administrators'. A snapshot or a VM that is
shared is shared with all that is in its memory and on its disk, secrets included.";

/// Help of `quota`.
pub const QUOTA_EXAMPLES: &str = "\
Examples:
  fpagent quota set ann --vms 20 --cpus 8 --memory 16G --disk 200G --snapshots 50 --images 5
  fpagent quota ls
  fpagent quota show ann
  fpagent quota rm ann

Processors and memory count for VMs that run or are paused, disks for all, as large as guests see them. Nothing is taken away from
who has more already. Without a quota there is no limit.";

/// Whose something that is made is to be.
#[derive(Debug, Clone, Args)]
pub struct OwnerArg {
    /// Whose it is to be, for administrators. Without it one's own.
    #[arg(
        long,
        value_name = "OWNER",
        default_value = "",
        hide_default_value = true
    )]
    pub owner: String,
}

/// What is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shared {
    /// An image.
    Image,
    /// A snapshot.
    Snapshot,
    /// A VM.
    Vm,
}

/// Arguments of `share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// What it is.
    #[arg(value_enum)]
    pub kind: Shared,
    /// Its name or id.
    pub name: String,
    /// An owner, or `everyone`.
    #[arg(long, value_name = "OWNER")]
    pub with: String,
    /// Not any more: what is open in a VM ends. What was made of it stays.
    #[arg(long)]
    pub stop: bool,
    /// See there.
    #[command(flatten)]
    pub change: Change,
}

/// What to do about quotas.
#[derive(Debug, Subcommand)]
pub enum QuotaCommand {
    /// Says how much an owner may have. What is not said stays as it was.
    #[command(after_help = "\
Examples:
  fpagent quota set ann --vms 20 --memory 16G
  fpagent quota set ci --images 0")]
    Set(SetArgs),
    /// Lists what owners have and may have.
    #[command(after_help = "Examples:\n  fpagent quota ls -o json")]
    Ls,
    /// Shows what one owner has and may have.
    #[command(after_help = "Examples:\n  fpagent quota show\n  fpagent quota show ann")]
    Show {
        /// The owner. Without it oneself.
        #[arg(default_value = "", hide_default_value = true)]
        owner: String,
    },
    /// Lets an owner have as much as there is.
    #[command(after_help = "Examples:\n  fpagent quota rm ann")]
    Rm {
        /// The owner.
        owner: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// Arguments of `quota set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The owner.
    pub owner: String,
    /// See there.
    #[command(flatten)]
    pub amounts: AmountArgs,
    /// See there.
    #[command(flatten)]
    pub change: Change,
}

/// How much of each: at least of one.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct AmountArgs {
    /// VMs, whether they run or not.
    #[arg(long, value_name = "N")]
    pub vms: Option<u64>,
    /// Virtual processors of VMs that run or are paused.
    #[arg(long, value_name = "N")]
    pub cpus: Option<u64>,
    /// Memory of those, such as 16G.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Disks of all VMs, such as 200G.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub disk: Option<u64>,
    /// Snapshots, with those that forks and suspended VMs keep.
    #[arg(long, value_name = "N")]
    pub snapshots: Option<u64>,
    /// Images.
    #[arg(long, value_name = "N")]
    pub images: Option<u64>,
}
