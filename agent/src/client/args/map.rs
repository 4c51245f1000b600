//! Arguments of `map`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::Args;

use super::{label, objects::ConstraintArgs, timeout};

/// Help of `map`.
pub const MAP_EXAMPLES: &str = "\
Examples:
  fpagent map demo -n 100 --spread -- sh -c 'run-shard $FP_INDEX $FP_COUNT'
  fpagent map @warm --input urls.txt --spread -o json -- ./fetch > results.jsonl
  fpagent map @db -n 20 --collect /var/log/test.xml --into results -- ./test.sh
  fpagent map demo -n 100 --reduce 'jq -s \"map(.stdout | tonumber) | add\"' -- ./count

Each item gets a fork of its own, all of one moment, which goes when its program has ended. Results are printed as they come: each
line with the item's number before it, or with -o json one object a line. Where a fork or its host fails, the item is done again, so
a program may run more than once; its result is taken once. A program that ends with another code than 0 is not run again.

Ends with 0 when all did. Nothing is left when this command ends, however it ends: its forks are kept by a lease that it renews,
and are deleted a minute (--lease) after it is gone.";

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
    /// The program and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
