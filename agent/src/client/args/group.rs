//! Arguments of `group`.

use clap::{Args, Subcommand};

use super::{Change, keep::KeepArgs, objects::Mode, owner::OwnerArg};

/// Help of `group`.
pub const GROUP_EXAMPLES: &str = "\
Examples:
  fpagent vm create db --group app --image tiny --wait
  fpagent vm create web --group app --image tiny --wait
  fpagent group fork app -n 3
  fpagent group ls
  fpagent group rm app-1 --force

The first VM that is created with its name begins a group, and it goes with its last member. Members live on one node, and each has a second
network card, on a network that only they are on: member N has the address 10.87.0.N there, in every copy. A fork of one member alone
(`fpagent fork db`) is in no group, and on no network of one.";

/// What to do about groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Makes copies of a group: all of its members as they are at one instant.
    #[command(after_help = "\
Examples:
  fpagent group fork app
  fpagent group fork app -n 3
  fpagent group fork app -n 3 --name try -o json

Without --name the copies of app are app-1, app-2, …, and their members db-1, web-1, …, with numbers that are free. With --name try they are
try-1, try-2, … (a single one try), and their members try-1-db, try-1-web, … Ends with 1 when one of them failed: a copy has all of its
members, or has failed.")]
    Fork(Box<GroupForkArgs>),
    /// Lists all groups.
    #[command(after_help = "Examples:\n  fpagent group ls\n  fpagent group ls -o json")]
    Ls,
    /// Shows one group and its members.
    #[command(after_help = "Examples:\n  fpagent group show app")]
    Show {
        /// Its name, OWNER/NAME, or id.
        group: String,
    },
    /// Deletes all members of a group with their disks. Its copies stay.
    #[command(after_help = "Examples:\n  fpagent group rm app-1 --force")]
    Rm {
        /// Its name, OWNER/NAME, or id.
        group: String,
        /// Also when members run.
        #[arg(long)]
        force: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// Arguments of `group fork`.
#[derive(Debug, Args)]
pub struct GroupForkArgs {
    /// Its name, OWNER/NAME, or id.
    pub group: String,
    /// How many copies.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    pub count: u32,
    /// The copy's name, or the beginning of several names.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
    /// Whether members are copied while they run, or after they were stopped.
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// See there.
    #[command(flatten)]
    pub owner: OwnerArg,
    /// See there.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// See there.
    #[command(flatten)]
    pub change: Change,
}
