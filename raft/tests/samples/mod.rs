//! One of everything that is stored.

mod commands;
mod states;

use raft::state::*;

pub use self::{commands::proposals, states::state};

fn schedule() -> Schedule {
    Schedule {
        every: 300_000,
        keep: 3,
        replicas: 2,
    }
}

fn labels() -> Labels {
    Labels::from([
        ("team".into(), "blue".into()),
        ("tier".into(), String::new()),
    ])
}

fn settings() -> Labels {
    Labels::from([
        ("DB_URL".into(), "a\nb".into()),
        ("x.y".into(), String::new()),
    ])
}

fn capacity() -> Capacity {
    Capacity {
        cpus: 8,
        memory_bytes: 16 << 30,
        qemu_version: "10.0.2".into(),
        accelerators: vec![Accelerator::Kvm, Accelerator::Tcg],
        processor: "a processor, stepping 4, features 01234567".into(),
        agent_version: "0.1.0".into(),
        newest_version: 1,
        problems: vec!["no write tracking".into()],
    }
}

fn blob(byte: u8) -> Blob {
    Blob {
        sha256: [byte; 32],
        size_bytes: 1_000_000 + u64::from(byte),
    }
}

fn disk() -> DiskBlob {
    DiskBlob {
        blob: blob(3),
        virtual_bytes: 1 << 30,
    }
}

fn content() -> Content {
    Content {
        base: 0x51,
        stream: 0x52,
        layers: vec![0x51, 0x41, u128::MAX],
        accelerator: Accelerator::Tcg,
        cpu_model: "max".into(),
        processor: "a processor, stepping 4, features 01234567".into(),
        qemu_version: "10.0.2".into(),
        machine: "microvm".into(),
        devices: vec!["virtio-blk".into(), "virtio-console".into()],
        agent: true,
        base_bytes: 256 << 20,
        stream_bytes: 1_200_000,
        stream_checksum: 0x1234_5678,
        layer_bytes: 300_000,
        safety: Safety::Disk(Checksums {
            base: u32::MAX,
            layers: vec![1, 2, 3],
        }),
        report: CaptureReport {
            pause_us: 1,
            agent_pause_us: 2,
            ahead_us: 3,
            stop_us: 4,
            disk_us: 5,
            devices_us: 6,
            scan_us: 7,
            copy_us: 8,
            cont_us: 9,
            write_us: 10,
            rounds: 11,
            ahead_bytes: 12,
            paused_bytes: 13,
            new_base: true,
            live: false,
            note: "did not converge".into(),
        },
    }
}

fn ending(cause: EndCause) -> Ending {
    Ending {
        cause,
        detail: "it ended".into(),
        at: 1_700_000_000_000,
        exit_code: (cause == EndCause::Exited).then_some(-1),
    }
}

fn spec() -> VmSpec {
    VmSpec {
        image: ImageId(0x31),
        cpus: 4,
        memory_bytes: 256 << 20,
        disk_bytes: 1 << 30,
        machine: Machine::Microvm,
        accelerator: Accelerator::Auto,
        cpu_model: Some("max,+x2apic".into()),
        cmdline: "fp.pulse".into(),
        limits: Limits {
            cpu_percent: Some(150),
            memory_bytes: Some(512 << 20),
            pids: Some(64),
        },
        restart: RestartPolicy::OnFailure,
        network: Network::User { egress: false },
        publish: vec![22, 80, 65_535],
        self_fork: 9,
        unready: Unready::Hold,
    }
}

/// An authority's certificate.
pub fn authority(byte: u8) -> AuthorityCertificate {
    AuthorityCertificate {
        fingerprint: [byte; 32],
        der: vec![0x30, byte],
        expires_at: 9_999,
    }
}

/// What a node says of its certificates.
pub fn trust() -> NodeTrust {
    NodeTrust {
        key: [4; 32],
        authority: [5; 32],
        holds: [6; 32],
    }
}

/// Every response and every rejection, by name.
pub fn outcomes() -> Vec<(String, Outcome)> {
    let id = 0x0192_3456_789a_bcde_f012_3456_789a_bcde;
    let kinds = [
        Kind::Node,
        Kind::Token,
        Kind::Image,
        Kind::Vm,
        Kind::Snapshot,
        Kind::Operation,
        Kind::Certificate,
        Kind::Authority,
    ];
    let mut outcomes: Vec<(String, Outcome)> = vec![
        ("done".into(), Ok(Response::Done)),
        ("node".into(), Ok(Response::Node(3))),
        ("deleted-node".into(), Ok(Response::DeletedNode(3))),
        ("image".into(), Ok(Response::Image(ImageId(id)))),
        ("vm".into(), Ok(Response::Vm(VmId(id)))),
        ("deleted-vm".into(), Ok(Response::DeletedVm(VmId(id)))),
        ("snapshot".into(), Ok(Response::Snapshot(SnapshotId(id)))),
        (
            "deleted-snapshot".into(),
            Ok(Response::DeletedSnapshot(SnapshotId(id))),
        ),
        ("operation".into(), Ok(Response::Operation(OperationId(id)))),
        (
            "certificate".into(),
            Ok(Response::Certificate(CertificateId(id))),
        ),
        ("bad-token".into(), Err(Rejection::BadToken)),
        (
            "reused".into(),
            Err(Rejection::RequestIdReused { id: "r".into() }),
        ),
        (
            "no-capacity".into(),
            Err(Rejection::NoCapacity {
                short: 3,
                wanted: 1_000,
                reasons: vec!["n1 is offline".into()],
            }),
        ),
        (
            "too-few-nodes".into(),
            Err(Rejection::TooFewNodes {
                wanted: 3,
                reasons: vec!["n2 is cordoned".into()],
            }),
        ),
        (
            "invalid".into(),
            Err(Rejection::InvalidField {
                field: "cpus".into(),
                problem: "too many".into(),
            }),
        ),
    ];
    let (name, some) = (|| "a".to_owned(), || vec!["b".to_owned(), "c".to_owned()]);
    outcomes.extend(kinds.map(|kind| {
        (
            format!("not-found-{kind:?}"),
            Err(Rejection::NotFound { kind, name: name() }),
        )
    }));
    let kind = Kind::Vm;
    outcomes.extend([
        (
            "ambiguous".to_owned(),
            Err(Rejection::Ambiguous {
                kind,
                name: name(),
                matches: some(),
            }),
        ),
        (
            "given-up".to_owned(),
            Err(Rejection::GivenUp {
                kind,
                name: name(),
                node: "n3".to_owned(),
            }),
        ),
        (
            "name-taken".to_owned(),
            Err(Rejection::NameTaken { kind, name: name() }),
        ),
        (
            "in-use".to_owned(),
            Err(Rejection::InUse {
                kind,
                name: name(),
                dependents: some(),
            }),
        ),
        (
            "wrong-state".to_owned(),
            Err(Rejection::WrongState {
                kind,
                name: name(),
                problem: "is off".into(),
            }),
        ),
    ]);
    outcomes
}

/// A quota of some things.
pub fn quota() -> Quota {
    Quota {
        vms: Some(300),
        memory_bytes: Some(1 << 40),
        images: Some(0),
        ..Quota::default()
    }
}

pub fn map_asker() -> MapAsker {
    MapAsker {
        certificate: CertificateId(0x23),
        name: "ann".into(),
        role: Role::Operator,
        expires_at: 99,
    }
}

pub fn map_job() -> MapJob {
    MapJob {
        source: "a@gold".into(),
        count: 2,
        inputs: vec![b"one\n".to_vec(), b"two\n".to_vec()],
        argv: vec![b"sh".to_vec(), b"-c".to_vec(), vec![0xff]],
        env: vec!["WORD=x".into()],
        user: "root".into(),
        limit: Some(1_000),
        retries: 3,
        parallel: 2,
        lease_ttl: 60_000,
        node: "n1".into(),
        spread: true,
        constraints: Constraints {
            node_labels: labels(),
            apart_from: vec!["db".into()],
        },
        reduce: Some("wc -l".into()),
    }
}

pub fn map_result() -> MapResult {
    MapResult {
        index: 1,
        exit_code: Some(3),
        error: "ended by a signal".into(),
        stdout: b"out".to_vec(),
        stderr: vec![0xfe],
        truncated: true,
        vm: "a-7".into(),
        node: "n1".into(),
        attempts: 2,
        took_us: 1_500,
    }
}
