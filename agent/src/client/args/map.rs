//! Arguments of `map`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{Change, label, objects::ConstraintArgs, request_id, timeout};

/// Help of `map`.
pub const MAP_EXAMPLES: &str = "\
Examples:
  fpagent map demo -n 100 --spread -- sh -c 'run-shard $FP_INDEX $FP_COUNT'
  fpagent map @warm --input urls.txt --spread -o json -- ./fetch > results.jsonl
  fpagent map @db -n 20 --collect /var/log/test.xml --into results -- ./test.sh
  fpagent map demo -n 1000 --spread --detach --name nightly -- ./test
  fpagent map demo -n 100 --reduce 'jq -s \"map(.stdout | tonumber) | add\"' -- ./count

Each item gets a fork of its own, all of one moment, which goes when its program has ended. Results are printed as they come: each
line with the item's number before it, or with -o json one object a line. Where a fork or its host fails, the item is done again, so
a program may run more than once; its result is taken once. A program that ends with another code than 0 is not run again.

Ends with 0 when all did. Nothing is left when this command ends, however it ends: its forks are kept by a lease that it renews,
and are deleted a minute (--lease) after it is gone.

With --detach the map is left to the cluster, and this command prints its id and ends. A node drives it, with the rights of the
certificate that it was asked for with, and another one when that is lost or drained. `fpagent maps results ID` prints what this command
would, from any node, and ends as it would. 10,000 items, 512 KiB of input, and of what programs print 64 KiB for each output and
4 MiB for all are the most that such a map may have.";

/// Help of `maps`.
pub const MAPS_EXAMPLES: &str = "\
Examples:
  id=$(fpagent map demo -n 1000 --spread --detach -- ./test)
  fpagent maps ls
  fpagent maps results $id -o json > results.jsonl
  fpagent maps wait $id
  fpagent maps cancel $id
  fpagent maps rm $id

A map that ended is kept for a day, or as `map --keep-for` says, and goes then with its results.";

/// Arguments of `map`.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// What is forked: a VM, or a snapshot as VM@SNAPSHOT or @SNAPSHOT.
    pub source: String,
    /// How many items: FP_INDEX is 0 to N-1 in their environments, FP_COUNT is N.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000),
          required_unless_present = "input")]
    pub count: Option<u32>,
    /// An item for each line of a file, or of standard input with -, which its program reads.
    #[arg(long, value_name = "FILE", conflicts_with = "count")]
    pub input: Option<PathBuf>,
    /// How many run at once [default: all, 64 at most].
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub parallel: Option<u32>,
    /// The node that the forks live on, by name or number. Without it, the one that has what is forked.
    #[arg(
        long,
        value_name = "NODE",
        default_value = "",
        hide_default_value = true
    )]
    pub node: String,
    /// Over all nodes that can take them, evenly.
    #[arg(long, conflicts_with = "node")]
    pub spread: bool,
    /// See there.
    #[command(flatten)]
    pub constraints: ConstraintArgs,
    /// A setting in the programs' environments, NAME=VALUE; can be repeated.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = label)]
    pub env: Vec<(String, String)>,
    /// Name or number of the user that they run as.
    #[arg(long, short, default_value = "root")]
    pub user: String,
    /// How often an item is done again whose fork or host failed.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub retries: u32,
    /// How long its forks stay when this command is gone without having ended: 10s to 24h.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = timeout)]
    pub lease: Duration,
    /// A file or folder in each fork that is copied here when its program has ended, whatever with.
    #[arg(long, value_name = "PATH", requires = "into")]
    pub collect: Option<OsString>,
    /// Where that goes: to DIR/INDEX/.
    #[arg(long, value_name = "DIR", requires = "collect")]
    pub into: Option<PathBuf>,
    /// A shell's command line that runs in one more fork when all items ended with 0, and reads their results as -o json prints them.
    #[arg(long, value_name = "COMMAND")]
    pub reduce: Option<String>,
    /// Leaves it to the cluster, and prints its id.
    #[arg(long)]
    pub detach: bool,
    /// A name for it, among its owner's.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true,
        requires = "detach"
    )]
    pub name: String,
    /// How long it is kept after its end: up to 10 days [default: 24h].
    #[arg(long, value_name = "TIME", value_parser = timeout, requires = "detach")]
    pub keep_for: Option<Duration>,
    /// Makes it safe to repeat the command with --detach: under the same id it happens once. Chosen by itself when not given.
    #[arg(long, value_name = "ID", value_parser = request_id, requires = "detach")]
    pub request_id: Option<String>,
    /// The program and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl MapArgs {
    /// The program and its arguments.
    pub fn argv(&self) -> Vec<Vec<u8>> {
        let words = self.command.iter().cloned();
        words.map(OsString::into_vec).collect()
    }

    /// What is in its environment: NAME=VALUE.
    pub fn settings(&self) -> Vec<String> {
        let env = self.env.iter();
        env.map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// What to do about maps that are left to the cluster.
#[derive(Debug, Subcommand)]
pub enum MapsCommand {
    /// Lists them.
    #[command(after_help = "Examples:\n  fpagent maps ls\n  fpagent maps ls -o json")]
    Ls,
    /// Shows one: how far it has come, who drives it, what it waits for.
    #[command(after_help = "Examples:\n  fpagent maps show nightly")]
    Show {
        /// Its name, OWNER/NAME, or id.
        map: String,
    },
    /// Prints its results from the first on, as they come, as `map` does, and ends as that does.
    #[command(after_help = "\
Examples:
  fpagent maps results nightly
  fpagent maps results nightly -o json > results.jsonl

It can be interrupted and begun again, through any node: the map goes on. Ends with 0 when all items ended with 0, and with 1 when one did not,
or the map failed or was cancelled; after --reduce with its code.")]
    Results {
        /// Its name, OWNER/NAME, or id.
        map: String,
    },
    /// Waits until it has ended, and ends as `results` does.
    #[command(after_help = "Examples:\n  fpagent maps wait nightly && fpagent maps rm nightly")]
    Wait {
        /// Its name, OWNER/NAME, or id.
        map: String,
    },
    /// Ends it, with all that is being made for it. Results that are there stay.
    #[command(after_help = "Examples:\n  fpagent maps cancel nightly")]
    Cancel {
        /// Its name, OWNER/NAME, or id.
        map: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Deletes maps with their results.
    #[command(
        after_help = "Examples:\n  fpagent maps rm nightly\n  fpagent maps rm nightly --force"
    )]
    Rm {
        /// Their names, OWNER/NAME, or ids.
        #[arg(required = true, value_name = "MAP")]
        maps: Vec<String>,
        /// Also such that run: they are cancelled.
        #[arg(long)]
        force: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}
