//! From the replicated state to how a machine is started: what a VM's spec, its image and its snapshot mean on this host.

use std::time::Duration;

use super::network;
use crate::{blobs::hex, guest::identity};
use qemu::{
    console::Wire,
    groups::Limits,
    layout,
    machine::Launch,
    past::Past,
    port::Line,
    record::{BaseName, LayerName, StreamName, StreamRef},
    spec::{self, Device, Hardware, MachineType, NetworkLine, Start},
};
use raft::state::{
    Accelerator, Content, FileId, GuestAgent, Image, ImageId, Machine, Network, SnapshotId, State,
    Vm, VmId, VmSpec,
};
use ulid::Ulid;

/// What of a host decides how machines are started on it.
#[derive(Debug, Clone)]
pub struct Fitness {
    /// QEMU's version, or why it cannot be used.
    pub qemu: Result<String, String>,
    /// Whether KVM can be used, or why not.
    pub kvm: Result<(), &'static str>,
    /// The rate of the processor's time stamp counter, kHz, where it could be measured.
    pub tsc_khz: Option<u32>,
    /// The processor: see [`raft::state::Capacity::processor`].
    pub processor: String,
}

/// A VM cannot be started here as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// QEMU cannot be used.
    #[error("{0}")]
    Qemu(String),
    /// KVM was asked for.
    #[error("KVM was asked for and cannot be used on this host: {0}")]
    Kvm(&'static str),
    /// The snapshot was made by another QEMU.
    #[error(
        "the snapshot was made by QEMU {made_by} and this node has {here}; restore it where that version is, or install it here"
    )]
    QemuVersion {
        /// Which made it.
        made_by: String,
        /// Which is here.
        here: String,
    },
    /// The snapshot was made under KVM on another processor.
    #[error(
        "the snapshot was made under KVM on another processor ({made_on}) than this node's ({here}): its guest may use what is not there"
    )]
    Processor {
        /// Which it was made on.
        made_on: String,
        /// Which is here.
        here: String,
    },
    /// The snapshot was made on a machine type, or a version of one, that is not used here.
    #[error("the snapshot was made on the machine type {made_on:?}; this version restores {known}")]
    Machine {
        /// Which it was made on.
        made_on: String,
        /// Which are used here.
        known: String,
    },
    /// The snapshot needs a device that this version does not know.
    #[error("the snapshot needs {0:?}, which this version does not know")]
    Unknown(String),
    /// The image is gone from the state.
    #[error("its image {0} is not known")]
    NoImage(ImageId),
    /// The image has no kernel to start.
    #[error("its image {0:?} has no kernel")]
    NoKernel(String),
    /// The snapshot is gone, or not ready.
    #[error("its snapshot {0} is not there")]
    NoSnapshot(SnapshotId),
}

/// How long a guest without a ready line may take is not watched; with one, this is it.
pub fn patience(image: &Image) -> Duration {
    Duration::from_millis(image.boot_timeout_ms)
}

/// The image a spec refers to.
pub fn image<'a>(state: &'a State, spec: &VmSpec) -> Result<&'a Image, Unfit> {
    state
        .images
        .get(&spec.image)
        .map(|image| &**image)
        .ok_or(Unfit::NoImage(spec.image))
}

/// The machine that a spec means on this host.
pub fn hardware(state: &State, spec: &VmSpec, fitness: &Fitness) -> Result<Hardware, Unfit> {
    hardware_with(spec, image(state, spec)?.guest_agent, fitness)
}

/// The machine that a VM is when it boots on this host.
pub fn hardware_of(state: &State, vm: &Vm, fitness: &Fitness) -> Result<Hardware, Unfit> {
    let mut hardware = hardware(state, &vm.spec, fitness)?;
    if vm.group.is_some() {
        hardware.devices.push(Device::GroupNetwork);
    }
    Ok(hardware)
}

/// The same, where it is known which agent its guest has.
fn hardware_with(spec: &VmSpec, agent: GuestAgent, fitness: &Fitness) -> Result<Hardware, Unfit> {
    fitness
        .qemu
        .as_ref()
        .map_err(|problem| Unfit::Qemu(problem.clone()))?;
    let accelerator = match (spec.accelerator, fitness.kvm) {
        (Accelerator::Kvm, Err(problem)) => return Err(Unfit::Kvm(problem)),
        (Accelerator::Kvm | Accelerator::Auto, Ok(())) => spec::Accelerator::Kvm,
        (Accelerator::Tcg, _) | (Accelerator::Auto, Err(_)) => spec::Accelerator::Tcg,
    };
    let mut devices = Vec::new();
    if spec.disk_bytes > 0 {
        devices.push(Device::Disk);
    }
    devices.push(Device::Rng);
    devices.extend(match agent {
        GuestAgent::ForkyPig => Some(Device::Port),
        GuestAgent::Qemu => Some(Device::QemuPort),
        GuestAgent::None => None,
    });
    if spec.network != Network::None {
        devices.push(Device::Network);
    }
    let machine = match spec.machine {
        Machine::Microvm => MachineType::Microvm,
        Machine::Q35 => MachineType::Q35,
    };
    let cpu_model = spec
        .cpu_model
        .clone()
        .unwrap_or_else(|| accelerator.best_cpu().to_owned());
    // Another model may lack what a kernel needs to do without it.
    let knows_its_rates = cpu_model == accelerator.best_cpu()
        && (accelerator == spec::Accelerator::Kvm || fitness.tsc_khz.is_some());
    if machine == MachineType::Microvm && !knows_its_rates {
        devices.push(Device::Pit);
    }
    Ok(Hardware {
        machine,
        accelerator,
        cpu_model,
        cpus: spec.cpus,
        memory_bytes: spec.memory_bytes,
        devices,
    })
}

/// The machine that a snapshot was made of, if it can be restored here.
pub fn snapshot_hardware(
    spec: &VmSpec,
    content: &Content,
    fitness: &Fitness,
) -> Result<Hardware, Unfit> {
    let here = fitness
        .qemu
        .as_ref()
        .map_err(|problem| Unfit::Qemu(problem.clone()))?;
    if *here != content.qemu_version {
        return Err(Unfit::QemuVersion {
            made_by: content.qemu_version.clone(),
            here: here.clone(),
        });
    }
    let accelerator = match content.accelerator {
        Accelerator::Kvm => {
            fitness.kvm.map_err(Unfit::Kvm)?;
            if content.processor != fitness.processor {
                return Err(Unfit::Processor {
                    made_on: content.processor.clone(),
                    here: fitness.processor.clone(),
                });
            }
            spec::Accelerator::Kvm
        }
        Accelerator::Tcg => spec::Accelerator::Tcg,
        Accelerator::Auto => return Err(Unfit::Unknown("auto".to_owned())),
    };
    let machine = machine_type(&content.machine)?;
    let known = [
        Device::Disk,
        Device::Rng,
        Device::Port,
        Device::QemuPort,
        Device::Network,
        Device::GroupNetwork,
        Device::Pit,
    ];
    let devices = content
        .devices
        .iter()
        .map(|name| {
            known
                .iter()
                .copied()
                .find(|device| device.name() == name)
                .ok_or_else(|| Unfit::Unknown(name.clone()))
        })
        .collect::<Result<_, _>>()?;
    Ok(Hardware {
        machine,
        accelerator,
        cpu_model: content.cpu_model.clone(),
        cpus: spec.cpus,
        memory_bytes: spec.memory_bytes,
        devices,
    })
}

/// What a process is started for: a VM, or one that is yet to be.
#[derive(Debug, Clone)]
pub struct Child {
    /// Its id, which also names its first overlay.
    pub id: VmId,
    /// Which boot of it this is.
    pub boot: u64,
    /// What it is made of.
    pub spec: VmSpec,
}

impl Child {
    /// For a VM.
    pub fn of(vm: &Vm) -> Self {
        Self {
            id: vm.id,
            boot: vm.boot,
            spec: vm.spec.clone(),
        }
    }
}

/// The machine type that a snapshot names, version and all.
fn machine_type(name: &str) -> Result<MachineType, Unfit> {
    MachineType::named(name).ok_or_else(|| Unfit::Machine {
        made_on: name.to_owned(),
        known: MachineType::ALL.map(MachineType::name).join(", "),
    })
}

/// What is the same in every start of a VM.
#[derive(Debug, Clone)]
pub struct Place {
    /// User and group of its process: the group is its lineage's.
    pub user: Option<(u32, u32)>,
    /// What leads from its console to those who read and write it.
    pub console: Wire,
    /// Where the connections to its guest's agent go.
    pub port: Line,
}

/// How a VM is started from its disk. `layers` are those it has; none when it has never been started.
pub fn boot(
    state: &State,
    vm: &Vm,
    fitness: &Fitness,
    place: Place,
    layers: Option<Vec<LayerName>>,
    has_run: bool,
) -> Result<Launch, Unfit> {
    let image = image(state, &vm.spec)?;
    let kernel = image
        .kernel
        .as_ref()
        .ok_or_else(|| Unfit::NoKernel(image.name.clone()))?;
    let hardware = hardware_of(state, vm, fitness)?;
    let mut cmdline = [image.cmdline.as_str(), vm.spec.cmdline.as_str()]
        .join(" ")
        .trim()
        .to_owned();
    if let (spec::Accelerator::Tcg, Some(khz)) = (hardware.accelerator, fitness.tsc_khz) {
        cmdline = format!("{cmdline} {}", spec::counter_words(khz));
    }
    let new_layer = layers.is_none();
    let launch = of_image(&Child::of(vm), hardware, image, place);
    let network = match &vm.group {
        Some(group) => NetworkLine {
            group_mac: guest::group::mac(network::number(group)),
            ..launch.network
        },
        None => launch.network,
    };
    Ok(Launch {
        network,
        boot: vm.boot,
        has_run,
        start: Start::Boot {
            kernel: layout::image(&hex(&kernel.sha256)),
            initrd: image
                .initrd
                .as_ref()
                .map(|initrd| layout::image(&hex(&initrd.sha256))),
            cmdline,
        },
        base: None,
        layers: layers.unwrap_or_else(|| {
            if vm.spec.disk_bytes > 0 {
                vec![layer_name(vm.id.0)]
            } else {
                vec![]
            }
        }),
        new_layer,
        ready_line: image.ready_line.clone(),
        ..launch
    })
}

/// The same of one that has never run here, and whose disk came from the node where it was.
pub fn on_disk(launch: Launch, disk: &[FileId]) -> Launch {
    let own = launch.layers.iter().map(|_| layer_name(Ulid::new().0));
    let layers = own.chain(disk.iter().copied().map(layer_name)).collect();
    Launch {
        has_run: true,
        layers,
        ..launch
    }
}

/// How a fork is started from what a capture will be, or is, made of.
pub fn restore(
    state: &State,
    child: &Child,
    hardware: Hardware,
    place: Place,
    base: BaseName,
    below: &[LayerName],
) -> Result<Launch, Unfit> {
    let image = image(state, &child.spec)?;
    // A VM that goes on from a moment of its own has its first overlay below.
    let own = Some(layer_name(child.id.0)).filter(|own| !below.contains(own));
    let own = own.unwrap_or_else(|| layer_name(Ulid::new().0));
    let layers = if child.spec.disk_bytes > 0 {
        std::iter::once(own).chain(below.iter().cloned()).collect()
    } else {
        vec![]
    };
    Ok(Launch {
        base: Some(base),
        layers,
        ..of_image(child, hardware, image, place)
    })
}

/// What cannot be changed in a process that waits without a shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Its machine.
    pub hardware: Hardware,
    /// What it may take at most.
    pub limits: Limits,
    /// The group of the lineage whose files it may read; `None` when users are not changed.
    pub lineage: Option<u32>,
    /// Whether its guest may reach out.
    pub egress: bool,
    /// The image that its own disk will lie on.
    pub image: ImageId,
    /// That image's disk.
    image_disk: Option<String>,
}

impl Kind {
    /// What children of this spec need, in this lineage.
    pub fn of(
        state: &State,
        spec: &VmSpec,
        hardware: Hardware,
        lineage: Option<u32>,
    ) -> Result<Self, Unfit> {
        Ok(Self {
            hardware,
            limits: limits(spec),
            lineage,
            egress: egress(spec),
            image: spec.image,
            image_disk: image_disk(image(state, spec)?),
        })
    }
}

/// How a process is started that belongs to nobody and has no shape yet.
pub fn shapeless(id: VmId, kind: Kind, place: Place) -> Launch {
    let layers = match kind.hardware.devices.contains(&Device::Disk) {
        true => vec![layer_name(id.0)],
        false => vec![],
    };
    Launch {
        start: Start::Shapeless,
        layers,
        new_layer: false,
        image_disk: kind.image_disk,
        ..skeleton(id, 1, kind.hardware, (kind.limits, kind.egress), place)
    }
}

fn image_disk(image: &Image) -> Option<String> {
    image.disk.as_ref().map(|disk| hex(&disk.blob.sha256))
}

/// Of a VM, whose disk lies on its image's.
fn of_image(vm: &Child, hardware: Hardware, image: &Image, place: Place) -> Launch {
    Launch {
        disk_bytes: vm.spec.disk_bytes,
        image_disk: image_disk(image),
        ..skeleton(
            vm.id,
            vm.boot,
            hardware,
            (limits(&vm.spec), egress(&vm.spec)),
            place,
        )
    }
}

/// Whether a VM's guest may reach out.
fn egress(spec: &VmSpec) -> bool {
    spec.network == (Network::User { egress: true })
}

/// `may` is what the process may take, and whether its guest may reach out.
fn skeleton(id: VmId, boot: u64, hardware: Hardware, may: (Limits, bool), place: Place) -> Launch {
    let (limits, egress) = may;
    Launch {
        vm: super::vm_name(id),
        boot,
        has_run: false,
        past: Past::default(),
        user: place.user,
        hardware,
        limits,
        base: None,
        start: Start::Incoming,
        layers: vec![],
        disk_bytes: 0,
        new_layer: true,
        image_disk: None,
        ready_line: None,
        console: place.console,
        network: NetworkLine {
            mac: identity::mac(id),
            egress,
            // One that is loaded has its own from its stream.
            group_mac: guest::group::mac(0),
        },
        port: Some(place.port),
    }
}

/// What a VM's process may take at most.
pub fn limits(spec: &VmSpec) -> Limits {
    Limits {
        cpu_percent: spec.limits.cpu_percent,
        memory_bytes: spec.limits.memory_bytes,
        pids: spec.limits.pids,
    }
}

/// A layer's name in the engine's folders.
pub fn layer_name(layer: FileId) -> LayerName {
    LayerName(VmId(layer).to_string())
}

/// A base's name in the engine's folders.
pub fn base_name(base: FileId) -> BaseName {
    BaseName(VmId(base).to_string())
}

/// A snapshot's stream.
pub fn stream(content: &Content) -> StreamRef {
    StreamRef {
        name: stream_name(content.stream),
        checksum: content.stream_checksum,
    }
}

/// A stream's name in the engine's folders.
pub fn stream_name(stream: FileId) -> StreamName {
    StreamName(VmId(stream).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_another_machine_version_is_refused_by_name() {
        assert_eq!(machine_type("pc-q35-10.0"), Ok(MachineType::Q35));
        assert_eq!(machine_type("microvm"), Ok(MachineType::Microvm));
        let refused = machine_type("pc-q35-9.2").unwrap_err().to_string();
        assert!(refused.contains("\"pc-q35-9.2\""), "{refused}");
        assert!(refused.contains("pc-q35-10.0"), "{refused}");
    }

    #[test]
    fn a_microvm_has_an_interval_timer_where_its_kernel_may_need_one() {
        let has_pit = |machine, cpu_model: Option<&str>, accelerator, tsc_khz| {
            let spec = VmSpec {
                image: ImageId(1),
                cpus: 1,
                memory_bytes: 1 << 28,
                disk_bytes: 0,
                machine,
                accelerator,
                cpu_model: cpu_model.map(str::to_owned),
                cmdline: String::new(),
                limits: raft::state::Limits::default(),
                restart: raft::state::RestartPolicy::Never,
                network: Network::default(),
                publish: vec![],
                self_fork: 0,
                unready: raft::state::Unready::default(),
            };
            let fitness = Fitness {
                qemu: Ok("10.0.2".to_owned()),
                kvm: Ok(()),
                tsc_khz,
                processor: String::new(),
            };
            let devices = hardware_with(&spec, GuestAgent::ForkyPig, &fitness)
                .unwrap()
                .devices;
            devices.contains(&Device::Pit)
        };
        let known = Some(2_000_000);
        assert!(!has_pit(Machine::Microvm, None, Accelerator::Tcg, known));
        assert!(has_pit(Machine::Microvm, None, Accelerator::Tcg, None));
        assert!(!has_pit(Machine::Microvm, None, Accelerator::Kvm, None));
        assert!(has_pit(
            Machine::Microvm,
            Some("qemu64"),
            Accelerator::Kvm,
            known
        ));
        assert!(!has_pit(
            Machine::Q35,
            Some("qemu64"),
            Accelerator::Tcg,
            None
        ));
    }
}
