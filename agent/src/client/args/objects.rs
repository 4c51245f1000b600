//! Arguments of the commands about images, VMs, snapshots and operations.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use proto::v1;

use super::{
    Change,
    guest::{GuestAgent, GuestArgs, SecretArg, WAIT_EXAMPLES, WaitArgs, secret},
    keep::{KeepArgs, millis},
    label,
    owner::OwnerArg,
    timeout,
};
use crate::client::units::{parse_duration, parse_processors, parse_size};

/// Help of `image`.
pub const IMAGE_EXAMPLES: &str = "\
Examples:
  fpagent image import tiny --kernel vmlinuz --initrd initrd --disk disk.qcow2 --cmdline 'console=ttyS0'
  fpagent image ls
  fpagent image rm tiny";

/// Help of `vm`.
pub const VM_EXAMPLES: &str = "\
Examples:
  fpagent vm create demo --image tiny --cpus 2 --memory 512M --wait
  fpagent vm ls -o wide
  fpagent vm stop demo
  fpagent vm move demo --node host-b
  fpagent vm rm demo demo-1 demo-2 --force";

/// Help of `fork`.
pub const FORK_EXAMPLES: &str = "\
Examples:
  fpagent fork demo
  fpagent fork demo -n 10 --name worker
  fpagent fork demo -n 30 --spread
  fpagent fork @golden --node node2
  fpagent fork web -n 6 --spread --where disk=ssd --apart-from db
  fpagent fork web -n 3 --label app=web --apart-from app=web     # each on another node
  fpagent fork demo@before-test --paused
  fpagent fork demo -n 3 --set role=worker --secret token=@token.txt
  fpagent fork @golden -n 3 -o json

One fork gets exactly the name that is given, N get NAME-1 to NAME-N. Ends with 1 when one of them failed. In a fork `fpguest get`
prints what --set and --secret say. --where and --apart-from count now and are not remembered; with them, and neither --node nor
--spread, forks go where what is forked is, or as little of it as can be has to be brought. Settings are seen by whoever may ask for the VM; secrets reach the guest and nothing else, and
are read as they are, with a line break at the end if there is one.";

/// Help of `snapshot`.
pub const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  fpagent snapshot create demo before-test
  fpagent snapshot ls
  fpagent snapshot tag 01J9ZK3A golden
  fpagent snapshot rm golden";

/// Help of `tree`.
pub const TREE_EXAMPLES: &str = "\
Examples:
  fpagent tree
  fpagent tree demo
  fpagent tree @golden -o json";

/// Help of `op`.
pub const OPERATION_EXAMPLES: &str = "\
Examples:
  fpagent op ls
  fpagent op show 01J9ZK3A
  fpagent op cancel 01J9ZK3A";

/// Help of `logs`.
pub const LOGS_EXAMPLES: &str = "\
Examples:
  fpagent logs demo
  fpagent logs demo -f";

/// Help of `console`.
pub const CONSOLE_EXAMPLES: &str = "\
Examples:
  fpagent console demo
  echo 'uname -a' | fpagent console demo --linger 2s

From a terminal every key goes to the guest; Ctrl-] leaves. Other input is sent as it is; after its end the console stays
open for --linger. Any number may look on, one at a time may write. What was printed before is in `fpagent logs`.";

/// What to do about images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Imports an image: a kernel with its initrd, a disk, or both.
    #[command(after_help = "\
Examples:
  fpagent image import tiny --kernel vmlinuz --initrd initrd --disk disk.qcow2 --cmdline 'console=ttyS0' \\
      --ready-line 'forkypig-guest ready' --boot-timeout 30s")]
    Import(ImportArgs),
    /// Lists all images.
    #[command(after_help = "Examples:\n  fpagent image ls -o wide")]
    Ls,
    /// Shows one image.
    #[command(after_help = "Examples:\n  fpagent image show tiny")]
    Show {
        /// Its name or id.
        image: String,
    },
    /// Deletes an image that nothing was made from.
    #[command(after_help = "Examples:\n  fpagent image rm tiny")]
    Rm {
        /// Its name or id.
        image: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// Arguments of `image import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The image's name.
    pub name: String,
    /// A Linux kernel.
    #[arg(long, value_name = "FILE", required_unless_present = "disk")]
    pub kernel: Option<PathBuf>,
    /// The kernel's initial RAM file system.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        requires = "kernel",
        default_value = "",
        hide_default_value = true
    )]
    pub cmdline: String,
    /// A root disk, qcow2 without a backing file.
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// A line that the guest prints on its console once it is up.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub ready_line: String,
    /// How long a guest may take until it prints that line.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub boot_timeout: Duration,
    /// Which program its guests answer with.
    #[arg(long, value_enum, default_value_t)]
    pub guest_agent: GuestAgent,
    /// See there.
    #[command(flatten)]
    pub owner: OwnerArg,
    /// See there.
    #[command(flatten)]
    pub change: Change,
}

/// What to do about VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Creates a VM from an image and starts it.
    #[command(after_help = "\
Examples:
  fpagent vm create demo --image tiny --wait
  fpagent vm create web --image tiny --restart on-failure    # after 1 s, 2 s, 4 s, … up to 5 min
  fpagent vm create web --image tiny --publish 80 443 --no-egress
  fpagent vm create try --image tiny --ttl 2h
  fpagent vm create db --image tiny --group app    # on a network with the others of app, and forked with them
  fpagent vm create job --image tiny --allow-self-fork 39    # its guests may fork their VMs
  fpagent vm create db2 --image tiny --where zone=west --apart-from db1    # where those nodes are that may take it
  fpagent vm create demo --image tiny --cpus 2 --memory 1G --disk 4G --node host-b --label team=blue")]
    Create(Box<CreateArgs>),
    /// Lists all VMs.
    #[command(after_help = "Examples:\n  fpagent vm ls\n  fpagent vm ls -o json")]
    Ls,
    /// Shows one VM.
    #[command(after_help = "Examples:\n  fpagent vm show demo")]
    Show {
        /// Its name or id.
        vm: String,
    },
    /// Waits until a VM runs, or has ended.
    #[command(after_help = WAIT_EXAMPLES)]
    Wait(WaitArgs),
    /// Starts a stopped or failed VM from its disk.
    #[command(after_help = "Examples:\n  fpagent vm start demo")]
    Start(PowerArgs),
    /// Presses a VM's power button, and ends it when that did not help for 30 s.
    #[command(after_help = "Examples:\n  fpagent vm stop demo\n  fpagent vm stop demo --force")]
    Stop {
        /// Which one.
        #[command(flatten)]
        power: PowerArgs,
        /// End it at once: what the guest had not written is lost.
        #[arg(long)]
        force: bool,
    },
    /// Lets a VM stand still.
    #[command(after_help = "Examples:\n  fpagent vm pause demo")]
    Pause(PowerArgs),
    /// Lets a paused or suspended VM go on.
    #[command(after_help = "Examples:\n  fpagent vm resume demo")]
    Resume(PowerArgs),
    /// Ends a VM and starts it from its disk.
    #[command(after_help = "Examples:\n  fpagent vm restart demo")]
    Restart(PowerArgs),
    /// Sets a VM to the moment of a snapshot: the same VM, as it was then. What it has been since is gone.
    #[command(after_help = "\
Examples:
  fpagent snapshot create demo before-test
  fpagent vm reset demo --to before-test
  fpagent vm reset demo --to @golden --paused

The snapshot is of a VM of the same image, size and machine type, on the same node. A VM that cannot be reset goes on as it was.")]
    Reset {
        /// Its name or id.
        vm: String,
        /// The snapshot: SNAPSHOT, @SNAPSHOT or VM@SNAPSHOT.
        #[arg(long, value_name = "SNAPSHOT")]
        to: String,
        /// Leave it standing still.
        #[arg(long)]
        paused: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Keeps a VM's moment on disk and ends its process. `vm resume` lets it go on, also after a reboot of its host.
    #[command(after_help = "\
Examples:
  fpagent vm suspend demo
  fpagent vm resume demo

`vm stop` on a suspended VM gives its moment up: then `vm start` starts it from its disk.")]
    Suspend {
        /// Its name or id.
        vm: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Has a VM go on on another host: the same VM, with its memory and its disk.
    #[command(after_help = "\
Examples:
  fpagent vm move demo
  fpagent vm move demo --node host-b

It is copied while it runs, and stands still for a moment at the end, which the answer tells. What is open in it ends: programs of `exec`,
consoles, copies, forwarded and published ports. A VM that cannot be moved goes on where it is. One that is stopped or suspended moves, too.")]
    Move {
        /// Its name or id.
        vm: String,
        /// The node that it is to live on, by name or number. Without it, the best other one.
        #[arg(
            long,
            value_name = "NODE",
            default_value = "",
            hide_default_value = true
        )]
        node: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Says what is done so that a VM is not lost with its host.
    #[command(
        group = clap::ArgGroup::new("what").required(true).multiple(true).args(["snapshot_every", "ha"]),
        after_help = "\
Examples:
  fpagent vm protect demo --snapshot-every 5m --keep 3 --replicas 2
  fpagent vm protect demo --snapshot-every 1m --replicas 2 --ha restore
  fpagent vm protect demo --snapshot-every off
  fpagent vm protect demo --ha off
  fpagent snapshot ls -o wide

With --ha restore it goes on elsewhere when its host is lost, from its newest snapshot that another host has; `vm show -o wide` says how old that
is, and afterwards what was lost. On its own host it runs only while that is heard of: cut off for 6 s, it stands still there, and
goes on if it was not restored meanwhile.

Of older ones, those go that are more than --keep, once newer ones are on as many hosts as asked. One that is given a name (`snapshot tag`)
stays. When the VM is deleted, all others go with it; after `off` they stay until then.")]
    Protect {
        /// Its name or id.
        vm: String,
        /// How far they are apart, such as 5m, at least 10s; or off.
        #[arg(long, value_name = "TIME|off", value_parser = every)]
        snapshot_every: Option<Every>,
        /// See there.
        #[command(flatten)]
        kept: ScheduledArgs,
        /// What becomes of it when its host is lost.
        #[arg(long, value_enum)]
        ha: Option<HaArg>,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Deletes VMs with their disks. Their forks stay.
    #[command(
        after_help = "Examples:\n  fpagent vm rm demo\n  fpagent vm rm demo-1 demo-2 demo-3 --force"
    )]
    Rm {
        /// Names or ids.
        #[arg(required = true, value_name = "VM")]
        vms: Vec<String>,
        /// Also those that run.
        #[arg(long)]
        force: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// Which nodes may take what a command makes.
#[derive(Debug, Clone, Args)]
pub struct ConstraintArgs {
    /// Only on nodes with this label; can be repeated, and then they have all of them.
    #[arg(long = "where", value_name = "KEY=VALUE", value_parser = label)]
    pub node_labels: Vec<(String, String)>,
    /// Not on a node that has this VM, or any with this label; can be repeated. With a --label that what is made has itself, each node
    /// takes one of them.
    #[arg(long, value_name = "VM|KEY=VALUE")]
    pub apart_from: Vec<String>,
}

impl From<ConstraintArgs> for v1::Constraints {
    fn from(args: ConstraintArgs) -> Self {
        Self {
            node_labels: args.node_labels.into_iter().collect(),
            apart_from: args.apart_from,
        }
    }
}

/// How far snapshots are apart that are taken by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// None is taken.
    Off,
    /// So far.
    Time(Duration),
}

fn every(text: &str) -> Result<Every, String> {
    match text {
        "off" => Ok(Every::Off),
        time => timeout(time).map(Every::Time),
    }
}

/// How snapshots are kept that are taken by themselves.
#[derive(Debug, Clone, Args)]
pub struct ScheduledArgs {
    /// How many of the newest are kept [default: 3].
    #[arg(long, value_name = "N", requires = "snapshot_every", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
    /// On how many hosts each is to be [default: 1].
    #[arg(long, value_name = "N", requires = "snapshot_every", value_parser = clap::value_parser!(u32).range(1..))]
    pub replicas: Option<u32>,
}

impl ScheduledArgs {
    /// The same for the API.
    pub fn schedule(&self, every: Option<Every>) -> Option<v1::SnapshotSchedule> {
        match every {
            None | Some(Every::Off) => None,
            Some(Every::Time(every)) => Some(v1::SnapshotSchedule {
                every_ms: millis(every),
                keep: self.keep.unwrap_or_default(),
                replicas: self.replicas.unwrap_or_default(),
                next_at: None,
            }),
        }
    }
}

/// Arguments of `vm create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name, unique among its owner's VMs.
    pub name: String,
    /// Name or id of the image.
    #[arg(long)]
    pub image: String,
    /// Virtual processors.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,
    /// Memory, such as 256M.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = nonzero_size)]
    pub memory: u64,
    /// Disk, such as 2G. Without it the image's own size.
    #[arg(long, value_name = "SIZE", value_parser = nonzero_size)]
    pub disk: Option<u64>,
    /// Where to put it. Without it the least loaded node that can take it.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub node: String,
    /// See there.
    #[command(flatten)]
    pub constraints: ConstraintArgs,
    /// The group that it is to be in, which the first begins: its members live on one node, with a network between them, and are forked together.
    #[arg(
        long,
        value_name = "GROUP",
        default_value = "",
        hide_default_value = true
    )]
    pub group: String,
    /// What kind of machine it is.
    #[arg(long, value_enum, default_value_t)]
    pub machine: Machine,
    /// How its code is run.
    #[arg(long, value_enum, default_value_t)]
    pub accel: Accel,
    /// QEMU's CPU model. Without it the best that the accelerator has.
    #[arg(
        long,
        value_name = "MODEL",
        default_value = "",
        hide_default_value = true
    )]
    pub cpu_model: String,
    /// Added to the image's kernel command line.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub cmdline: String,
    /// How much processor time its process may take: 50% of a processor, or 1.5 processors. Its forks may as much.
    #[arg(long, value_name = "CPUS", value_parser = parse_processors)]
    pub cpu_limit: Option<u32>,
    /// How much memory of its own its process may take, at least 64M. Its forks may as much.
    #[arg(long, value_name = "SIZE", value_parser = nonzero_size)]
    pub memory_limit: Option<u64>,
    /// How many threads its process may have, at least 16. Its forks may as many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pub pids_limit: Option<u32>,
    /// Whether it is started from its disk again when it ends unasked. A reboot always is. Its forks do as it does.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub restart: Restart,
    /// Have a snapshot be taken of it so often while it runs, such as 5m, at least 10s.
    #[arg(long, value_name = "TIME|off", value_parser = every)]
    pub snapshot_every: Option<Every>,
    /// See there.
    #[command(flatten)]
    pub kept: ScheduledArgs,
    /// What becomes of it when its host is lost; restore needs snapshots that another host has: see `vm protect`.
    #[arg(long, value_enum, default_value_t)]
    pub ha: HaArg,
    /// See there.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// A note, KEY=VALUE; can be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// See there.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// See there.
    #[command(flatten)]
    pub owner: OwnerArg,
    /// Wait until it runs, not only until it is decided.
    #[arg(long)]
    pub wait: bool,
    /// See there.
    #[command(flatten)]
    pub change: Change,
}

/// Arguments of the commands that change how a VM should be.
#[derive(Debug, Args)]
pub struct PowerArgs {
    /// Its name or id.
    pub vm: String,
    /// Do not wait until it is so.
    #[arg(long)]
    pub no_wait: bool,
    /// See there.
    #[command(flatten)]
    pub change: Change,
}

/// Arguments of `fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// A VM, or a snapshot as VM@SNAPSHOT or @SNAPSHOT.
    pub parent: String,
    /// How many.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    pub count: u32,
    /// The fork's name, or the beginning of several names.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
    /// The node that they are to live on, by name or number. Without it, the one that has what is forked. What that node lacks it
    /// fetches first.
    #[arg(
        long,
        value_name = "NODE",
        default_value = "",
        hide_default_value = true
    )]
    pub node: String,
    /// Over all nodes that can take them, evenly: zones (nodes' label `zone`) first, then nodes.
    #[arg(long, conflicts_with = "node")]
    pub spread: bool,
    /// See there.
    #[command(flatten)]
    pub constraints: ConstraintArgs,
    /// Whether the parent is copied while it runs, or after it was stopped.
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// Leave the forks standing still.
    #[arg(long)]
    pub paused: bool,
    /// A note for each fork, KEY=VALUE; can be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// What the forks' guests are told, KEY=VALUE; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = label)]
    pub settings: Vec<(String, String)>,
    /// What they are told and nobody else: KEY=@FILE, or KEY=@- for standard input; can be repeated.
    #[arg(long = "secret", value_name = "KEY=@FILE", value_parser = secret)]
    pub secrets: Vec<SecretArg>,
    /// See there.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// See there.
    #[command(flatten)]
    pub owner: OwnerArg,
    /// See there.
    #[command(flatten)]
    pub change: Change,
}

/// What to do about snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Captures a VM, which goes on afterwards as it was.
    #[command(
        after_help = "Examples:\n  fpagent snapshot create demo before-test\n  fpagent snapshot create demo golden --replicas 2 --wait"
    )]
    Create {
        /// Name or id of the VM.
        vm: String,
        /// The snapshot's name.
        #[arg(default_value = "", hide_default_value = true)]
        name: String,
        /// Whether the VM is copied while it runs, or after it was stopped.
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
        /// Have it be on so many hosts, its own included.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        replicas: Option<u32>,
        /// Wait until it is on the disks of as many hosts as are asked for.
        #[arg(long)]
        wait: bool,
        /// See there.
        #[command(flatten)]
        keep: KeepArgs,
        /// See there.
        #[command(flatten)]
        owner: OwnerArg,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Lists the snapshots that can be forked.
    #[command(after_help = "Examples:\n  fpagent snapshot ls -o wide")]
    Ls,
    /// Shows one snapshot.
    #[command(
        after_help = "Examples:\n  fpagent snapshot show golden\n  fpagent snapshot show demo@before-test"
    )]
    Show {
        /// Its name, its id, @NAME or VM@NAME.
        snapshot: String,
    },
    /// Gives a snapshot a name. A named one stays when its last fork goes.
    #[command(after_help = "Examples:\n  fpagent snapshot tag 01J9ZK3A golden")]
    Tag {
        /// Its name or id.
        snapshot: String,
        /// Its new name.
        name: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Keeps forks of a snapshot ready: started, loaded, standing still. A fork takes one within a few milliseconds.
    #[command(
        after_help = "Examples:\n  fpagent snapshot warm web@golden -n 10\n  fpagent snapshot warm golden -n 0      # none any more\n  fpagent snapshot show golden           # how many are ready"
    )]
    Warm {
        /// Its name or id, or VM@NAME.
        snapshot: String,
        /// How many, 0 to 1000.
        #[arg(short = 'n', long, value_name = "N")]
        count: u32,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Has a snapshot be on so many hosts: those that lack it fetch it, and one that is lost gives way to another.
    #[command(
        after_help = "Examples:\n  fpagent snapshot replicate golden --replicas 2\n  fpagent snapshot replicate web@golden --replicas 3 --wait\n  fpagent snapshot show golden           # replicated once they have it"
    )]
    Replicate {
        /// Its name or id, or VM@NAME.
        snapshot: String,
        /// On how many hosts. What others hold besides stays there.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        replicas: u32,
        /// Wait until it is on their disks.
        #[arg(long)]
        wait: bool,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
    /// Deletes a snapshot that nothing depends on.
    #[command(after_help = "Examples:\n  fpagent snapshot rm before-test")]
    Rm {
        /// Its name or id.
        snapshot: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// Arguments of `tree`.
#[derive(Debug, Args)]
pub struct TreeArgs {
    /// Only what descends from this VM or snapshot.
    #[arg(value_name = "VM|SNAPSHOT")]
    pub root: Option<String>,
}

/// What to do about operations.
#[derive(Debug, Subcommand)]
pub enum OperationCommand {
    /// Lists operations, the newest first.
    #[command(after_help = "Examples:\n  fpagent op ls")]
    Ls,
    /// Shows one operation.
    #[command(after_help = "Examples:\n  fpagent op show 01J9ZK3A")]
    Show {
        /// Its id, or the beginning of it.
        operation: String,
    },
    /// Asks that an operation be given up.
    #[command(after_help = "Examples:\n  fpagent op cancel 01J9ZK3A")]
    Cancel {
        /// Its id, or the beginning of it.
        operation: String,
        /// See there.
        #[command(flatten)]
        change: Change,
    },
}

/// Arguments of `console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// The VM's name or id.
    pub vm: String,
    /// How long to go on printing after the end of input that is no terminal's.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    pub linger: Duration,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The VM's name or id.
    pub vm: String,
    /// Go on with what it prints from now on.
    #[arg(long, short)]
    pub follow: bool,
}

/// What follows when a VM ends unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Restart {
    /// It stays stopped or failed.
    #[default]
    Never,
    /// It is started again after a panic, a crash, or a boot that came to nothing; not when its guest powered off.
    OnFailure,
    /// It is started again, also when its guest powered off.
    Always,
}

impl From<Restart> for v1::RestartPolicy {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::Never => Self::Never,
            Restart::OnFailure => Self::OnFailure,
            Restart::Always => Self::Always,
        }
    }
}

/// What becomes of a VM when its host is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum HaArg {
    /// It is there again when its host is.
    #[default]
    Off,
    /// It goes on elsewhere, from its newest snapshot that another host has.
    Restore,
}

impl From<HaArg> for v1::OnHostLoss {
    fn from(ha: HaArg) -> Self {
        match ha {
            HaArg::Off => Self::Stay,
            HaArg::Restore => Self::Restore,
        }
    }
}

/// What kind of machine a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Machine {
    /// No PCI; starts fastest.
    #[default]
    Microvm,
    /// PCI, for devices that need it.
    Q35,
}

impl From<Machine> for v1::Machine {
    fn from(machine: Machine) -> Self {
        match machine {
            Machine::Microvm => Self::Microvm,
            Machine::Q35 => Self::Q35,
        }
    }
}

/// How a VM's code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Accel {
    /// KVM where the host has it, else emulation.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// Emulation.
    Tcg,
}

impl From<Accel> for v1::Accelerator {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Auto => Self::Auto,
            Accel::Kvm => Self::Kvm,
            Accel::Tcg => Self::Tcg,
        }
    }
}

/// How a running VM is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Mode {
    /// While it runs where the host can, else after it was stopped.
    #[default]
    Auto,
    /// After it was stopped.
    Paused,
    /// While it runs, or an error.
    Live,
}

impl From<Mode> for v1::CaptureMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Paused => Self::Paused,
            Mode::Live => Self::Live,
        }
    }
}

/// On the wire 0 means "as usual": who types it means something else.
fn nonzero_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("must be more than 0".to_owned()),
        size => Ok(size),
    }
}
