//! How the daemon is started: the options of `fpagent run`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::client::units::{parse_duration, parse_size};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

/// Whether the memory that guests write is tracked by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum WriteTracking {
    /// Where the kernel can.
    #[default]
    Auto,
    /// Never: captures compare pages instead, as on older kernels.
    Off,
}

/// Whether the kernel merges equal memory pages of VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MergeMemory {
    /// Never: what a VM holds cannot be guessed by the time that a write takes.
    #[default]
    Off,
    /// Always.
    On,
    /// When memory is low or many VMs are idle, as long as it gains more than it costs.
    Auto,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// The least that `--transfer-rate` may be: with less, nodes that fetch much at once would take this one for dead.
const LEAST_RATE: u64 = 1 << 20;

fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        less if less < LEAST_RATE => Err("must be 1M at least".to_owned()),
        rate => Ok(rate),
    }
}

/// Options of `fpagent run`.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// The data directory that `fpagent init` or `fpagent join` prepared.
    #[arg(long, value_name = "DIR", env = "FPAGENT_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Where the agent listens from now on, when that is to change: it is kept for the next starts.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where others reach it from now on: kept, too. Without it, a node that was reached where it listens is reached there again.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The Unix socket for clients on this host; it has the mode 0600.
    #[arg(long, value_name = "PATH", default_value = "/run/fpagent/agent.sock")]
    pub socket: PathBuf,
    /// A file with further options: a line NAME = VALUE for each, with the words that would be typed here. Lines that begin with # are
    /// passed over; what is typed goes before.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines are written. RUST_LOG chooses which ones.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// After how long without an answer a voter may be replaced by another node.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration, hide = true)]
    pub voter_away: Duration,
    /// How long a node is silent before forks and captures go on without it: more than an agent takes that is started anew.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    pub lost_after: Duration,
    /// How long a host that has joined may take until its agent starts; until its token ends at least.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration, hide = true)]
    pub newcomer_patience: Duration,
    /// Where the kernel names the host's boot: files that are not known to be on disk are given up when it has changed.
    #[arg(long, value_name = "FILE", default_value = qemu::record::HOST_BOOT, hide = true)]
    pub host_boot_file: PathBuf,
    /// Memory that is kept back for the host: what does not fit beside it is refused. Forks are kept ready while there is twice as
    /// much.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub reserve_memory: u64,
    /// Disk that is kept back for the log: what does not fit beside it is refused.
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_size)]
    pub reserve_disk: u64,
    /// The most bytes a second that are sent to nodes that fetch images and snapshots, such as 50M; 1M at least. Without it as many as
    /// there is room for.
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub transfer_rate: Option<u64>,
    /// QEMU's program.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// QEMU's program for disk images.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-img")]
    pub qemu_img: PathBuf,
    /// Whether the kernel tracks the memory that guests write.
    #[arg(long, value_enum, default_value_t)]
    pub write_tracking: WriteTracking,
    /// Whether the kernel merges equal memory pages of VMs that are started from now on. With it, one guest can find out by
    /// timing whether another holds a page that it knows: all VMs of this host must trust each other.
    #[arg(long, value_enum, default_value_t)]
    pub merge_memory: MergeMemory,
    /// Whether QEMU processes that are started from now on are laid out in memory at random (ASLR). Off, they hold the same
    /// pointers and more than twice as much of them can be merged; but whoever finds a way out of one guest into its QEMU knows
    /// where everything lies.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub qemu_aslr: Switch,
    /// Memory counts as getting short when less than so much of it is available, percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 15, value_parser = clap::value_parser!(u8).range(..=100))]
    pub pressure_some: u8,
    /// Memory counts as short when less than so much of it is available, percent: then new VMs and forks are refused, and forks
    /// that are kept ready are given up.
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(..=100))]
    pub pressure_high: u8,
    /// The control group (a folder of cgroup v2) below which VMs get theirs. Without it the topmost one.
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// How many forks are kept ready of snapshots that are forked again and again, in all; 0 for none. Those that `snapshot warm`
    /// asks for are not counted.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub ready_forks: u32,
    /// How many processes wait for forks that nobody made ready, each of the machine that was forked last, or else of the newest VM:
    /// they save such a fork the start of QEMU, and take 12 MiB of memory each.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(..=100))]
    pub waiting_processes: u32,
    /// First of the 65,536 user ids that VMs run under, one each, where the agent is root.
    // Above what systems give to people and containers, below 2^31, where some tools take a uid for negative.
    #[arg(long, value_name = "UID", default_value_t = 1_879_048_192, value_parser = clap::value_parser!(u32).range(65_536..=2_147_418_112))]
    pub vm_uid_base: u32,
}
