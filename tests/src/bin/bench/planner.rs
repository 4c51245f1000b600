//! The planner, simulated: a thousand nodes with a hundred thousand VMs in a state that no host has, and what deciding where new ones go takes.

use std::{path::Path, time::Instant};

use anyhow::Context as _;
use raft::state::*;

use crate::{
    host,
    report::{Held, Report, Series},
};

const NODES: u64 = 1_000;
/// Of each node: one that is booted, the others forked from it.
const VMS_EACH: u32 = 100;
const ZONES: u64 = 10;
const MIB: u64 = 1 << 20;
/// How long a decision may take, milliseconds.
const MOST_MS: f64 = 50.0;

/// Measures, and adds what was measured to a report.
pub fn run(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let rounds = if quick { 20 } else { 200 };
    let world = World::new()?;
    report.machine = host::describe(Path::new("."))?;
    let cases = [
        ("spread", Placing::Spread, Vec::new()),
        (
            "spread, apart from a label",
            Placing::Spread,
            vec!["team=3"],
        ),
        ("near, where it overflows", Placing::Near, Vec::new()),
    ];
    for (what, placing, apart) in cases {
        let constraints = Constraints {
            node_labels: Labels::new(),
            apart_from: apart.into_iter().map(str::to_owned).collect(),
        };
        let (decided, applied) = world.fork(rounds, &placing, &constraints)?;
        report.held.push(held(what, "decided", decided)?);
        report
            .held
            .push(held(what, "in the state, with its copy", applied)?);
    }
    Ok(())
}

fn held(placing: &str, step: &str, ms: Vec<f64>) -> anyhow::Result<Held> {
    let ms = Series::of(ms).context("nothing was measured")?;
    let what = format!("1,000 forks {placing}: {step}");
    Ok(Held {
        note: format!(
            "median; {:.1} at most, of {}; {NODES} nodes, {} VMs",
            ms.max,
            ms.n,
            NODES * u64::from(VMS_EACH)
        ),
        ..Held::at_most("planner", &what, ms.median, MOST_MS, "ms")
    })
}

/// A state, and what every command of it says.
struct World {
    state: State,
    candidates: Vec<Candidate>,
    next: u128,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let mut world = Self {
            state: State::new(),
            candidates: Vec::new(),
            next: 1 << 60,
        };
        world.change(Command::Found {
            cluster: ClusterId(1),
            name: "n1".to_owned(),
            address: "h1:1".to_owned(),
        })?;
        for node in 1..=NODES {
            world.have_node(node)?;
        }
        world.import()?;
        for node in 1..=NODES {
            world.have_vms(node)?;
        }
        let vms = world.state.vms.len();
        anyhow::ensure!(vms as u64 == NODES * u64::from(VMS_EACH), "{vms} VMs");
        Ok(world)
    }

    fn id(&mut self) -> u128 {
        self.next += DERIVED_IDS;
        self.next
    }

    fn change(&mut self, command: Command) -> anyhow::Result<Response> {
        Ok(apply(&mut self.state, &proposal(command))?)
    }

    fn have_node(&mut self, node: NodeId) -> anyhow::Result<()> {
        if node > 1 {
            let id = self.id();
            let key_hash = [0; 32];
            self.change(Command::CreateToken {
                id: TokenId(id),
                key_hash,
                expires_at: 1_000,
                authority: [1; 32],
            })?;
            self.change(Command::Join {
                key_hash,
                name: format!("n{node}"),
                address: format!("h{node}:1"),
                newest_version: raft::version::newest(),
                start_by: 1_000,
            })?;
        }
        self.change(Command::ReportNode {
            node,
            address: format!("h{node}:1"),
            capacity: Capacity {
                cpus: 64,
                // Hosts differ.
                memory_bytes: (128 + 64 * (node % 3)) << 30,
                qemu_version: "10.0.2".to_owned(),
                accelerators: vec![Accelerator::Kvm, Accelerator::Tcg],
                processor: "a processor, stepping 4, features 01234567".to_owned(),
                agent_version: "0.1.0".to_owned(),
                newest_version: raft::version::newest(),
                problems: Vec::new(),
            },
        })?;
        self.change(Command::LabelNode {
            node: node.to_string(),
            set: Labels::from([(ZONE.to_owned(), format!("z{}", node % ZONES))]),
            remove: Vec::new(),
        })?;
        // So much that a request near one of them has to go on elsewhere.
        let memory_mib = 2_000 + (node as u32 * 37) % 9_000;
        self.candidates.push(Candidate {
            node,
            room: Some(Room {
                memory_mib,
                disk_mib: 500_000,
            }),
        });
        Ok(())
    }

    fn import(&mut self) -> anyhow::Result<()> {
        let id = self.id();
        let blob = |byte| Blob {
            sha256: [byte; 32],
            size_bytes: 64 * MIB,
        };
        self.change(Command::ImportImage {
            id: ImageId(id),
            name: "image".to_owned(),
            kernel: Some(blob(1)),
            initrd: None,
            disk: Some(DiskBlob {
                blob: blob(2),
                virtual_bytes: 1 << 30,
            }),
            cmdline: String::new(),
            ready_line: None,
            boot_timeout_ms: 60_000,
            guest_agent: GuestAgent::default(),
            node: 1,
        })?;
        Ok(())
    }

    /// One booted VM, and its forks.
    fn have_vms(&mut self, node: NodeId) -> anyhow::Result<()> {
        let (vm, operation) = (VmId(self.id()), OperationId(self.id()));
        let name = format!("vm-of-{node}");
        self.change(Command::CreateVm {
            id: vm,
            name: name.clone(),
            image: "image".to_owned(),
            node: Some(node.to_string()),
            constraints: Constraints::default(),
            candidates: self.candidates.clone(),
            cpus: 1,
            memory_bytes: 256 * MIB,
            disk_bytes: 0,
            machine: Machine::Microvm,
            accelerator: Accelerator::Auto,
            cpu_model: None,
            cmdline: String::new(),
            limits: Limits::default(),
            restart: RestartPolicy::Never,
            labels: Labels::from([("team".to_owned(), (node % 7).to_string())]),
            network: Network::default(),
            publish: Vec::new(),
            self_fork: 0,
            unready: Unready::default(),
            life: Life::Unbounded,
            schedule: None,
            ha: false,
            group: None,
        })?;
        self.change(Command::ReportVms {
            node,
            reports: vec![VmReport {
                vm,
                boot: 1,
                phase: Phase::Running,
                reason: String::new(),
                ending: None,
                restarts: 0,
                next_start: None,
            }],
        })?;
        let count = VMS_EACH - 1;
        let placing = (Placing::WithSource, Constraints::default());
        self.change(self.fork_command(operation, &name, count, &placing.0, &placing.1))?;
        self.change(Command::SnapshotReady {
            operation,
            content: crate::fake_host::content(operation),
        })?;
        let result = ChildResult {
            running_us: 60_000,
            ready_us: 90_000,
            error: String::new(),
            gave_way: false,
            failed_steps: Vec::new(),
        };
        self.change(Command::ReportChildren {
            operation,
            results: (0..count).map(|index| (index, result.clone())).collect(),
        })?;
        Ok(())
    }

    fn fork_command(
        &self,
        operation: OperationId,
        vm: &str,
        count: u32,
        placing: &Placing,
        constraints: &Constraints,
    ) -> Command {
        Command::Fork {
            operation,
            source: ForkSource::Vm(vm.to_owned()),
            count,
            name: None,
            mode: CaptureMode::Auto,
            paused: false,
            labels: Labels::new(),
            settings: Labels::new(),
            by_guest: false,
            has_secrets: false,
            placing: placing.clone(),
            constraints: constraints.clone(),
            candidates: self.candidates.clone(),
            life: Life::Unbounded,
            expires_at: 60_000,
        }
    }

    /// How long it takes to decide where a thousand forks go, and to have them in a copy of the state, each time of another VM.
    fn fork(
        &self,
        rounds: u64,
        placing: &Placing,
        constraints: &Constraints,
    ) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
        let (mut decided, mut applied) = (Vec::new(), Vec::new());
        let (by, labels) = (Actor::cluster(), Labels::new());
        for round in 1..=rounds {
            let vm = format!("vm-of-{}", round * NODES / rounds);
            let wanted = Wanted {
                by: &by,
                labels: &labels,
                constraints,
                candidates: &self.candidates,
                count: MAX_CHILDREN,
            };
            let begun = Instant::now();
            let nodes = places_of_fork(&self.state, &ForkSource::Vm(vm.clone()), placing, &wanted)?;
            decided.push(millis(begun));
            let operation = OperationId(u128::from(round) << 64);
            let command = self.fork_command(operation, &vm, MAX_CHILDREN, placing, constraints);
            let command = proposal(command);
            let begun = Instant::now();
            let mut state = self.state.clone();
            let outcome = apply(&mut state, &command);
            applied.push(millis(begun));
            outcome?;
            let node = |index| Some(state.vms.get(&operation.child(index))?.node);
            let all: Option<Vec<NodeId>> = (0..MAX_CHILDREN).map(node).collect();
            anyhow::ensure!(all == Some(nodes), "they went elsewhere");
        }
        Ok((decided, applied))
    }
}

fn proposal(command: Command) -> Proposal {
    Proposal {
        request: None,
        by: Actor::cluster(),
        now: 1,
        command,
    }
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
