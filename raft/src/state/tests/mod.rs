//! A small cluster's state, and commands to change it.

mod authority;
mod events;
mod family;
mod forks;
mod groups;
mod ha;
mod leaving;
mod life;
mod maps;
mod membership;
mod moving;
mod owners;
mod placing;
mod properties;
mod put_back;
mod quotas;
mod removal;
mod replicas;
mod reset;
mod resting;
mod schedule;
mod told;
mod vms;

use std::sync::Arc;

use super::*;

const MIB: u64 = 1 << 20;

/// A map's job of three items.
fn map_job() -> MapJob {
    MapJob {
        source: "a".into(),
        count: 3,
        inputs: Vec::new(),
        argv: vec![b"true".to_vec()],
        env: Vec::new(),
        user: "root".into(),
        limit: None,
        retries: 3,
        parallel: 0,
        lease_ttl: 10_000,
        node: String::new(),
        spread: false,
        constraints: Constraints::default(),
        reduce: None,
    }
}

/// A state whose every change is checked.
struct World {
    state: State,
    /// On whose behalf commands are.
    by: Actor,
    now: Millis,
    next: u128,
}

impl World {
    /// A cluster of two nodes, `n1` and `n2`, with the image `tiny`.
    fn new() -> Self {
        let mut world = Self {
            state: State::new(),
            by: Actor::cluster(),
            now: 1_000,
            next: 1 << 40,
        };
        world.ok(Command::Found {
            cluster: ClusterId(1),
            name: "n1".into(),
            address: "h1:7000".into(),
        });
        world.join("n2");
        for node in [1, 2] {
            let address = format!("h{node}:7000");
            world.ok(Command::ReportNode {
                node,
                address,
                capacity: capacity(),
            });
        }
        let image = world.image("tiny");
        world.ok(image);
        world
    }

    fn id(&mut self) -> u128 {
        self.next += DERIVED_IDS;
        self.next
    }

    fn join(&mut self, name: &str) -> NodeId {
        let key_hash = [self.id() as u8; 32];
        let id = TokenId(self.id());
        self.ok(Command::CreateToken {
            id,
            key_hash,
            expires_at: self.now + 1_000,
            authority: [1; 32],
        });
        match self.ok(Command::Join {
            key_hash,
            name: name.into(),
            address: format!("{name}:7000"),
            newest_version: 1,
            start_by: self.now + 1_000,
        }) {
            Response::Node(node) => node,
            other => panic!("{other:?}"),
        }
    }

    fn image(&mut self, name: &str) -> Command {
        Command::ImportImage {
            id: ImageId(self.id()),
            name: name.into(),
            kernel: Some(Blob {
                sha256: [1; 32],
                size_bytes: 10,
            }),
            initrd: None,
            disk: Some(DiskBlob {
                blob: Blob {
                    sha256: [2; 32],
                    size_bytes: 20,
                },
                virtual_bytes: 64 * MIB,
            }),
            cmdline: "console=ttyS0".into(),
            ready_line: Some("ready".into()),
            boot_timeout_ms: 30_000,
            guest_agent: GuestAgent::default(),
            node: 1,
        }
    }

    /// The command that makes a VM, to be altered.
    fn vm(&mut self, name: &str) -> Command {
        Command::CreateVm {
            id: VmId(self.id()),
            name: name.into(),
            image: "tiny".into(),
            node: None,
            constraints: Constraints::default(),
            candidates: online([1, 2]),
            cpus: 1,
            memory_bytes: 256 * MIB,
            disk_bytes: 0,
            machine: Machine::Microvm,
            accelerator: Accelerator::Auto,
            cpu_model: None,
            cmdline: String::new(),
            limits: Limits::default(),
            restart: RestartPolicy::default(),
            labels: Labels::new(),
            network: Network::default(),
            publish: Vec::new(),
            self_fork: 0,
            unready: Unready::default(),
            life: Life::Unbounded,
            schedule: None,
            ha: false,
            group: None,
        }
    }

    fn report_capacity(&mut self, node: NodeId, capacity: Capacity) {
        self.ok(Command::ReportNode {
            node,
            address: format!("h{node}:7000"),
            capacity,
        });
    }

    /// Makes a VM that runs.
    fn running(&mut self, name: &str) -> VmId {
        let command = self.vm(name);
        self.ok(command);
        let id = self.find(name).id;
        self.report(id, Phase::Running);
        id
    }

    fn find(&self, name: &str) -> Arc<Vm> {
        Arc::clone(names::vm(&self.state, &self.by, name).unwrap())
    }

    /// Reports a phase of a VM's current boot.
    fn report(&mut self, id: VmId, phase: Phase) {
        let boot = self.state.vms[&id].boot;
        self.report_all(report(id, boot, phase));
    }

    fn report_all(&mut self, report: VmReport) {
        let vm = Arc::clone(&self.state.vms[&report.vm]);
        self.ok(Command::ReportVms {
            node: vm.node,
            reports: vec![report],
        });
    }

    fn power(&mut self, vm: &str, action: PowerAction) -> Outcome {
        self.apply(Command::SetPower {
            vm: vm.into(),
            action,
        })
    }

    fn fork_command(&mut self, source: ForkSource, count: u32, name: Option<&str>) -> Command {
        Command::Fork {
            operation: OperationId(self.id()),
            source,
            count,
            name: name.map(Into::into),
            mode: CaptureMode::Auto,
            paused: false,
            labels: Labels::new(),
            settings: Labels::new(),
            by_guest: false,
            has_secrets: false,
            placing: Placing::WithSource,
            life: Life::Unbounded,
            constraints: Constraints::default(),
            candidates: online(self.state.nodes.keys().copied()),
            expires_at: self.now + 60_000,
        }
    }

    /// Begins a fork of a VM.
    fn fork(&mut self, vm: &str, count: u32, name: Option<&str>) -> OperationId {
        let command = self.fork_command(ForkSource::Vm(vm.into()), count, name);
        self.begun(command)
    }

    /// Begins a capture of a VM.
    fn capture(&mut self, vm: &str, name: Option<&str>) -> OperationId {
        let command = self.capture_command(vm, name);
        self.begun(command)
    }

    fn capture_command(&mut self, vm: &str, name: Option<&str>) -> Command {
        Command::CreateSnapshot {
            operation: OperationId(self.id()),
            vm: vm.into(),
            name: name.map(Into::into),
            mode: CaptureMode::Auto,
            life: Life::Unbounded,
            replicas: 0,
            candidates: Vec::new(),
            expires_at: self.now + 60_000,
        }
    }

    fn begun(&mut self, command: Command) -> OperationId {
        match self.ok(command) {
            Response::Operation(operation) => operation,
            other => panic!("{other:?}"),
        }
    }

    /// Has a node be drained, whoever votes.
    fn drain(&mut self, node: &str) {
        self.ok(Command::DrainNode {
            node: node.into(),
            voters: vec![1, 2, 3],
            silent: Vec::new(),
            force: true,
            rest: false,
        });
    }

    /// Lets a capture succeed.
    fn ready(&mut self, operation: OperationId) {
        self.ok(Command::SnapshotReady {
            operation,
            content: content(operation),
        });
    }

    /// Reports what became of children.
    fn children(&mut self, operation: OperationId, results: &[(u32, &str)]) {
        let result = |(index, error): &(u32, &str)| (*index, result(error));
        self.ok(Command::ReportChildren {
            operation,
            results: results.iter().map(result).collect(),
        });
    }

    /// Deletes a VM, running or not.
    fn delete(&mut self, vm: &str) {
        self.ok(Command::DeleteVm {
            vm: vm.into(),
            force: true,
        });
    }

    /// Applies a command. Whatever comes of it, a refusal changes nothing and the invariants hold.
    fn apply(&mut self, command: Command) -> Outcome {
        let before = self.state.clone();
        let proposal = Proposal {
            request: None,
            by: self.by.clone(),
            now: self.now,
            command,
        };
        let outcome = apply(&mut self.state, &proposal);
        if outcome.is_err() {
            assert_eq!(self.state, before, "refused, and changed: {proposal:?}");
        }
        check(&self.state).unwrap_or_else(|violation| panic!("{violation} after {proposal:?}"));
        outcome
    }

    fn ok(&mut self, command: Command) -> Response {
        self.apply(command).unwrap()
    }

    fn refused(&mut self, command: Command) -> Rejection {
        self.apply(command).unwrap_err()
    }

    /// What is refused because of a field: the field.
    fn invalid(&mut self, command: Command) -> String {
        match self.refused(command) {
            Rejection::InvalidField { field, .. } => field,
            other => panic!("{other}"),
        }
    }

    fn wrong_state(&mut self, command: Command) -> String {
        match self.refused(command) {
            Rejection::WrongState { problem, .. } => problem,
            other => panic!("{other}"),
        }
    }

    /// The names of what is gone and not deleted yet.
    fn buried(&self) -> Vec<&str> {
        self.state
            .tombstones
            .values()
            .map(|tombstone| tombstone.name.as_str())
            .collect()
    }
}

/// Nodes that are online and have not said what they have free.
fn online(nodes: impl IntoIterator<Item = NodeId>) -> Vec<Candidate> {
    let candidate = |node| Candidate { node, room: None };
    nodes.into_iter().map(candidate).collect()
}

/// What became of a child.
fn result(error: &str) -> ChildResult {
    ChildResult {
        running_us: 5,
        ready_us: 0,
        error: error.into(),
        gave_way: false,
        failed_steps: Vec::new(),
    }
}

/// A report of a VM that never ended.
fn report(vm: VmId, boot: u64, phase: Phase) -> VmReport {
    VmReport {
        vm,
        boot,
        phase,
        reason: String::new(),
        ending: None,
        restarts: 0,
        next_start: None,
    }
}

fn capacity() -> Capacity {
    Capacity {
        cpus: 2,
        memory_bytes: 4096 * MIB,
        qemu_version: "10.0.2".into(),
        accelerators: vec![Accelerator::Tcg],
        processor: "a processor".into(),
        agent_version: "0.1.0".into(),
        newest_version: 1,
        problems: Vec::new(),
    }
}

/// Of a host on which a thousand forks have room.
fn large() -> Capacity {
    Capacity {
        memory_bytes: 64 << 30,
        ..capacity()
    }
}

fn content(operation: OperationId) -> Content {
    Content {
        base: operation.snapshot().0,
        stream: operation.snapshot().0,
        layers: vec![operation.snapshot().0],
        accelerator: Accelerator::Tcg,
        cpu_model: "max".into(),
        processor: "a processor".into(),
        qemu_version: "10.0.2".into(),
        machine: "microvm".into(),
        devices: vec!["disk".into()],
        agent: false,
        base_bytes: 256 * MIB,
        stream_bytes: 1_000,
        stream_checksum: 3_000,
        layer_bytes: 2_000,
        safety: Safety::Memory,
        report: CaptureReport {
            pause_us: 5_000,
            agent_pause_us: 5_500,
            ahead_us: 30_000,
            stop_us: 700,
            disk_us: 1_000,
            devices_us: 1_300,
            scan_us: 300,
            copy_us: 400,
            cont_us: 700,
            write_us: 9_000,
            rounds: 2,
            ahead_bytes: 90 * MIB,
            paused_bytes: MIB,
            new_base: true,
            live: true,
            note: String::new(),
        },
    }
}

#[test]
fn a_request_is_done_once() {
    let mut world = World::new();
    let request = |id: &str, body| {
        Some(RequestKey {
            id: id.into(),
            body: [body; 32],
        })
    };
    let first = Proposal {
        request: request("r-1", 1),
        by: Actor::cluster(),
        now: 1,
        command: world.vm("a"),
    };
    let outcome = apply(&mut world.state, &first);
    assert!(matches!(outcome, Ok(Response::Vm(_))));
    let after = world.state.clone();

    // Sent again with another proposer's ids and time: the first outcome, and nothing done.
    let again = Proposal {
        request: request("r-1", 1),
        by: Actor::cluster(),
        now: 2,
        command: world.vm("a"),
    };
    assert_eq!(apply(&mut world.state, &again), outcome);
    assert_eq!(world.state, after);

    let other_body = Proposal {
        request: request("r-1", 2),
        by: Actor::cluster(),
        now: 2,
        command: world.vm("b"),
    };
    assert_eq!(
        apply(&mut world.state, &other_body),
        Err(Rejection::RequestIdReused { id: "r-1".into() })
    );
    assert_eq!(world.state, after);
}

#[test]
fn a_refused_request_stays_refused() {
    let mut world = World::new();
    let stop = Command::SetPower {
        vm: "a".into(),
        action: PowerAction::Stop,
    };
    let proposal = Proposal {
        request: Some(RequestKey {
            id: "r".into(),
            body: [1; 32],
        }),
        by: Actor::cluster(),
        now: 1,
        command: stop,
    };
    let outcome = apply(&mut world.state, &proposal);
    assert!(matches!(
        outcome,
        Err(Rejection::NotFound { kind: Kind::Vm, .. })
    ));
    world.running("a");
    assert_eq!(apply(&mut world.state, &proposal), outcome);
    assert_eq!(world.find("a").power, Power::Running);
}

#[test]
fn request_ids_have_a_form() {
    let mut world = World::new();
    for id in ["", "a b", "ä", &"x".repeat(65), "a\n"] {
        let request = Some(RequestKey {
            id: id.into(),
            body: [0; 32],
        });
        let proposal = Proposal {
            request,
            by: Actor::cluster(),
            now: 1,
            command: world.vm("a"),
        };
        let before = world.state.clone();
        let outcome = apply(&mut world.state, &proposal);
        assert!(
            matches!(outcome, Err(Rejection::InvalidField { field, .. }) if field == "requestId")
        );
        assert_eq!(world.state, before);
    }
}

#[test]
fn equal_states_have_equal_digests() {
    let (mut one, mut other) = (World::new(), World::new());
    assert_eq!(digest(&one.state), digest(&other.state));
    assert_eq!(digest(&one.state).len(), 64);
    one.running("a");
    assert_ne!(digest(&one.state), digest(&other.state));
    other.running("a");
    assert_eq!(digest(&one.state), digest(&other.state));
}
