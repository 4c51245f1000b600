//! A VM as a value, and QEMU's command line made from it. Pure: nothing is looked up, opened or started here.
//!
//! Paths are relative to the node's data directory, which is QEMU's working directory. Everything that could hold a comma
//! travels as JSON.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How guest code is run. There is no `auto` here: whoever makes a spec has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl Accelerator {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The CPU model with the most features that it has, or rather all of them: under emulation the default model also
    /// keeps the guest's timer tick periodic, which costs an idle guest eight times as much.
    pub fn best_cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

/// QEMU's machine types that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineType {
    /// virtio-mmio, started from a kernel, no PCI.
    Microvm,
    /// PCI, started from a kernel.
    Q35,
}

impl MachineType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Microvm, Self::Q35];

    /// QEMU's name for it, as in `-machine` and in a stream's configuration section: with its version where it has one, for
    /// `q35` alone means another machine in every release.
    pub fn name(self) -> &'static str {
        match self {
            Self::Microvm => "microvm",
            Self::Q35 => "pc-q35-10.0",
        }
    }

    /// The type with this name, version and all.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// What its `-machine` option has besides the name: everything that nobody asked for is left out.
    fn properties(self, devices: &[Device]) -> &'static str {
        match self {
            // The second interrupt controller brings two dozen slots for virtio devices with it, each of which QEMU makes: a quarter of
            // the time that the machine takes, and 2 MiB of its process. The first has eight.
            Self::Microvm if devices.contains(&Device::Pit) => ",ioapic2=off",
            Self::Microvm => ",ioapic2=off,pit=off",
            // The high precision timer keeps the processor awake, five times as much as the rest of an idle guest.
            Self::Q35 => ",hpet=off,sata=off,smbus=off,usb=off,vmport=off",
        }
    }

    /// The bus that its virtio devices are on, as their drivers' names end.
    fn virtio_bus(self) -> &'static str {
        match self {
            Self::Microvm => "device",
            Self::Q35 => "pci",
        }
    }
}

/// Empty places of a `q35` for devices that are added while it runs.
const FREE_PORTS: u32 = 4;

/// Read-only blocks of memory that only starting a kernel puts into a machine. A fork is started without one and has no
/// such block: its guest's reset ends the process.
pub fn is_boot_rom(block: &str) -> bool {
    const BOOT_ROMS: [&str; 4] = [
        "linuxboot_dma.bin",
        "linuxboot.bin",
        "pvh.bin",
        "multiboot_dma.bin",
    ];
    block
        .strip_prefix("/rom@genroms/")
        .is_some_and(|file| BOOT_ROMS.contains(&file))
}

/// A device of the machine. Their order decides their places, so it is part of what a snapshot needs to be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The root disk.
    Disk,
    /// A source of entropy.
    Rng,
    /// A serial port to our agent in the guest, named [`PORT`].
    Port,
    /// A serial port to QEMU's own agent in the guest, named [`QEMU_PORT`].
    QemuPort,
    /// A network card, on a network of its own that ends in the process.
    Network,
    /// A network card on the network of its VM's group, while it is in one: see [`crate::machine::Machine::group_end`].
    GroupNetwork,
    /// The programmable interval timer of a `microvm`; a `q35` has it in any case. A kernel that knows the rates of its processor's
    /// counter and timer never touches it, and as it is never stopped then, it wakes QEMU 36 times a second for nothing.
    Pit,
}

/// The name in the guest of the port to our agent.
pub const PORT: &str = "org.forkypig.agent";
/// The name of the port to QEMU's, as that program expects it.
pub const QEMU_PORT: &str = "org.qemu.guest_agent.0";

impl Device {
    /// Its name in a snapshot's record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "virtio-blk",
            Self::Rng => "virtio-rng",
            Self::Port => "virtio-serial",
            Self::QemuPort => "virtio-serial-qemu",
            Self::Network => "virtio-net",
            Self::GroupNetwork => "virtio-net-group",
            Self::Pit => "isa-pit",
        }
    }
}

/// How a machine's network is, where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkLine {
    /// The card's address. One that is loaded has it from its stream.
    pub mac: [u8; 6],
    /// Whether the guest may reach out.
    pub egress: bool,
    /// The address of the card on its group's network.
    pub group_mac: [u8; 6],
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl NetworkLine {
    fn backend(self) -> String {
        let restrict = if self.egress { "off" } else { "on" };
        format!("user,id=net,ipv6=off,restrict={restrict}")
    }
}

/// What a machine is made of, the same in a parent and in all its forks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// The machine type.
    pub machine: MachineType,
    /// How its code is run.
    pub accelerator: Accelerator,
    /// QEMU's CPU model.
    pub cpu_model: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Main memory, bytes.
    pub memory_bytes: u64,
    /// Its devices, in order.
    pub devices: Vec<Device>,
}

impl Hardware {
    /// Whether it has a serial port to an agent in the guest.
    pub fn has_port(&self) -> bool {
        let is_port = |device: &Device| matches!(device, Device::Port | Device::QemuPort);
        self.devices.iter().any(is_port)
    }
}

/// What main memory is made of when the process starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// Nothing yet.
    Anonymous,
    /// It is said later: see [`Start::Shapeless`].
    Later,
    /// A base file, mapped privately and never written.
    Base {
        /// Its path.
        path: String,
    },
}

/// What the machine begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// A kernel.
    Boot {
        /// The kernel's path.
        kernel: String,
        /// The initial RAM file system's path.
        initrd: Option<String>,
        /// The kernel's command line.
        cmdline: String,
    },
    /// A stream that will be loaded.
    Incoming,
    /// Nothing: its memory and its disk's layers are still to be said, then its devices are made and a stream is loaded. What the
    /// layers will lie on is open before.
    Shapeless,
}

/// One file of a disk's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskNode {
    /// The block node's name, at most 31 characters.
    pub node: String,
    /// The qcow2 file's path.
    pub path: String,
}

/// Numbers of the descriptors that the process is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// A listening Unix socket for QMP.
    pub qmp: i32,
    /// A listening Unix socket for the serial console.
    pub console: i32,
    /// A listening Unix socket for the serial port, where the machine has one.
    pub port: Option<i32>,
    /// What the card on its group's network is on, where the machine has one: a connected socket, a frame in each of its messages.
    pub group: Option<i32>,
}

/// What an emulated guest's kernel is told of its time stamp counter, which is the host's. It has only the PIT to find its rate by,
/// which fails on a busy host and leaves it hanging early in its kernel; nor has it anything to check the counter by. With several
/// processors it takes the counters for unsynchronized unless told, and is left with a clock of 4 ms that never lets it idle.
pub fn counter_words(khz: u32) -> String {
    format!("tsc_early_khz={khz} tsc=reliable")
}

/// Everything the command line is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine<'a> {
    /// The process's name, for `ps`.
    pub name: &'a str,
    /// The machine.
    pub hardware: &'a Hardware,
    /// Its memory.
    pub memory: Memory,
    /// What it begins with.
    pub start: Start,
    /// The disk's chain, the writable file first; empty for none.
    pub disk: &'a [DiskNode],
    /// How its network is, where it has one.
    pub network: NetworkLine,
    /// Its descriptors.
    pub fds: Descriptors,
}

/// The id of the main memory's object, which is also the name of its block in the stream.
pub const MAIN_MEMORY: &str = "m";

/// QEMU's arguments. It is started stopped in every case: `cont` is said when it is certain that the VM is wanted.
pub fn arguments(line: &CommandLine<'_>) -> Vec<String> {
    let hardware = line.hardware;
    let mut args: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| args.extend([format!("-{option}"), value]);

    add("name", json_free(line.name));
    let memory = memory_object(hardware, &line.memory);
    let backend = match memory {
        Some(_) => format!(",memory-backend={MAIN_MEMORY}"),
        None => String::new(),
    };
    add(
        "machine",
        format!(
            "{}{backend}{}",
            hardware.machine.name(),
            hardware.machine.properties(&hardware.devices)
        ),
    );
    add(
        "accel",
        match hardware.accelerator {
            Accelerator::Kvm => "kvm".to_owned(),
            // Translation buffers are private to each fork: small ones cost density nothing that shows.
            Accelerator::Tcg => "tcg,tb-size=32".to_owned(),
        },
    );
    add("cpu", hardware.cpu_model.clone());
    add("smp", hardware.cpus.to_string());
    add("m", format!("{}k", hardware.memory_bytes / 1024));
    if let Some(memory) = memory {
        add("object", memory.to_string());
    }
    let always = [("qmp", line.fds.qmp), ("console", line.fds.console)];
    for (name, fd) in always
        .into_iter()
        .chain(line.fds.port.map(|fd| ("port", fd)))
    {
        add(
            "chardev",
            format!("socket,id={name},fd={fd},server=on,wait=off"),
        );
    }
    add("mon", "chardev=qmp,mode=control".to_owned());
    add("serial", "chardev:console".to_owned());
    let open = match (&line.start, line.disk) {
        // The image's; the first will be made when it is known what lies between.
        (Start::Shapeless, disk) => disk.get(1).map(|image| backed_node(image, false, None)),
        (_, []) => None,
        (_, whole) => Some(disk_chain(whole, None)),
    };
    if let Some(open) = open {
        add("blockdev", open.to_string());
    }
    if hardware.devices.contains(&Device::Network) {
        add("netdev", line.network.backend());
    }
    if let Some(fd) = line.fds.group {
        add(
            "netdev",
            format!("dgram,id=group,local.type=fd,local.str={fd}"),
        );
    }
    for device in devices(hardware, line) {
        add("device", device.to_string());
    }
    match &line.start {
        Start::Boot {
            kernel,
            initrd,
            cmdline,
        } => {
            add("kernel", kernel.clone());
            if let Some(initrd) = initrd {
                add("initrd", initrd.clone());
            }
            add("append", cmdline.clone());
        }
        Start::Incoming | Start::Shapeless => {
            add("incoming", "defer".to_owned());
            // That a load has ended is an event. Not asked for over QMP, where somebody waits by then.
            add("global", "migration.x-events=on".to_owned());
        }
    }
    // A guest's reset ends the process: a fork has no kernel to boot again, so the agent starts it anew with one.
    add("action", "reboot=shutdown".to_owned());
    add("display", "none".to_owned());
    add(
        "sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );
    args.extend(["-nodefaults", "-no-user-config", "-S"].map(str::to_owned));
    args.extend((line.start == Start::Shapeless).then(|| "-preconfig".to_owned()));
    args
}

/// The machine's devices, in order: their places on a PCI bus follow from it, as those in a `microvm`'s slots do.
fn devices(hardware: &Hardware, line: &CommandLine<'_>) -> Vec<Value> {
    let (disk, mut devices) = (line.disk.first(), Vec::new());
    let virtio = |kind: &str, id: &str| {
        let mut device =
            json!({"driver": format!("virtio-{kind}-{}", hardware.machine.virtio_bus()), "id": id});
        if hardware.machine == MachineType::Q35 {
            device["disable-legacy"] = json!("on");
        }
        device
    };
    if hardware.machine == MachineType::Q35 {
        for port in 0..FREE_PORTS {
            // One slot for all of them.
            devices.push(json!({
                "driver": "pcie-root-port",
                "id": format!("port{port}"),
                "chassis": port + 1,
                "addr": format!("1.{port}"),
                "multifunction": port == 0,
            }));
        }
    }
    // By which a guest tells that its kernel panicked; without it a panic is a reset, or silence. It keeps no state that a
    // stream would carry.
    devices.push(match hardware.machine {
        MachineType::Q35 => json!({"driver": "pvpanic-pci", "id": "panic", "addr": "2.0"}),
        // A port of the ISA bus, which the guest finds by ACPI: a `microvm` has both.
        MachineType::Microvm => json!({"driver": "pvpanic", "id": "panic"}),
    });
    for device in &hardware.devices {
        match (device, disk) {
            (Device::Disk, Some(top)) => {
                let mut disk = virtio("blk", "disk");
                disk["drive"] = json!(top.node);
                devices.push(disk);
            }
            (Device::Disk, None) => {}
            (Device::Rng, _) => devices.push(virtio("rng", "rng")),
            (Device::Port | Device::QemuPort, _) => {
                let name = match device {
                    Device::QemuPort => QEMU_PORT,
                    _ => PORT,
                };
                devices.push(virtio("serial", "serial"));
                devices.push(json!({"driver": "virtserialport", "name": name, "chardev": "port"}));
            }
            (Device::Network | Device::GroupNetwork, _) => {
                let (id, netdev, mac) = match device {
                    Device::GroupNetwork => ("group-nic", "group", line.network.group_mac),
                    _ => ("nic", "net", line.network.mac),
                };
                let mut card = virtio("net", id);
                card["netdev"] = json!(netdev);
                card["mac"] = json!(mac_text(mac));
                // A fork is told to make itself known otherwise, before anything else: to nobody, and with its parent's address.
                card["guest_announce"] = json!(false);
                if hardware.machine == MachineType::Q35 {
                    // Nothing is started over the network, and each would carry a copy of it.
                    card["romfile"] = json!("");
                }
                devices.push(card);
            }
            // A property of the machine.
            (Device::Pit, _) => {}
        }
    }
    devices
}

/// The chain as QEMU's block layer takes it, on a node that is there already or on none: qcow2 always said, never probed, and no
/// backing path taken from a file.
pub fn disk_chain(chain: &[DiskNode], below: Option<&str>) -> Value {
    let mut backing = below.map_or(Value::Null, Value::from);
    for (depth, disk) in chain.iter().enumerate().rev() {
        let mut node = qcow2_node(disk, depth == 0);
        node["backing"] = backing;
        backing = node;
    }
    backing
}

/// A node that will be put on top of a chain while the machine runs.
pub fn overlay_node(disk: &DiskNode) -> Value {
    backed_node(disk, true, None)
}

/// A node as it is, above another one that is there, or above none.
pub fn backed_node(disk: &DiskNode, writable: bool, backing: Option<&str>) -> Value {
    let mut node = qcow2_node(disk, writable);
    node["backing"] = backing.map_or(Value::Null, Value::from);
    node
}

/// In few words: where QEMU is told by QMP, it reads a byte at a time (see [`crate::qmp`]).
fn qcow2_node(disk: &DiskNode, writable: bool) -> Value {
    let mut file = json!({"driver": "file", "filename": disk.path});
    let mut node = json!({
        "driver": "qcow2",
        "node-name": disk.node,
        "read-only": !writable,
    });
    if writable {
        file["discard"] = json!("unmap");
        node["discard"] = json!("unmap");
    }
    node["file"] = file;
    node
}

/// The object that main memory is; `None` where that is said later.
pub fn memory_object(hardware: &Hardware, memory: &Memory) -> Option<Value> {
    match memory {
        Memory::Later => None,
        Memory::Anonymous => Some(json!({
            "qom-type": "memory-backend-ram",
            "id": MAIN_MEMORY,
            "size": hardware.memory_bytes,
        })),
        // `rom=off`: the guest may write, into pages of its own; `readonly=on`: QEMU cannot write to the file.
        Memory::Base { path } => Some(json!({
            "qom-type": "memory-backend-file",
            "id": MAIN_MEMORY,
            "size": hardware.memory_bytes,
            "mem-path": path,
            "share": false,
            "readonly": true,
            "rom": "off",
        })),
    }
}

/// Doubles the commas of a value that goes into an option string.
fn json_free(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        Hardware {
            machine: MachineType::Microvm,
            accelerator: Accelerator::Tcg,
            cpu_model: "max".into(),
            cpus: 2,
            memory_bytes: 256 << 20,
            devices: vec![Device::Disk, Device::Rng],
        }
    }

    fn disk(n: u32) -> DiskNode {
        DiskNode {
            node: format!("d-{n}"),
            path: format!("layers/{n}.qcow2"),
        }
    }

    /// Of a machine without a disk that waits for a stream.
    fn line(hardware: &Hardware) -> CommandLine<'_> {
        CommandLine {
            name: "v",
            hardware,
            memory: Memory::Anonymous,
            start: Start::Incoming,
            disk: &[],
            network: NetworkLine {
                mac: [2, 0, 0, 0, 0, 0x1f],
                egress: true,
                group_mac: [2, 0, 0, 0, 1, 3],
            },
            fds: Descriptors {
                qmp: 3,
                console: 4,
                port: None,
                group: None,
            },
        }
    }

    fn value_after<'a>(args: &'a [String], option: &str) -> Vec<&'a str> {
        args.windows(2)
            .filter(|pair| pair[0] == option)
            .map(|pair| pair[1].as_str())
            .collect()
    }

    #[test]
    fn a_fork_maps_its_base_and_waits_for_its_stream() {
        let (hardware, chain) = (hardware(), [disk(3), disk(2), disk(1)]);
        let line = CommandLine {
            name: "a,b",
            memory: Memory::Base { path: "a,b".into() },
            disk: &chain,
            ..line(&hardware)
        };
        let args = arguments(&line);
        assert_eq!(value_after(&args, "-name"), ["a,,b"]);
        assert_eq!(value_after(&args, "-incoming"), ["defer"]);
        assert!(value_after(&args, "-kernel").is_empty());
        assert!(args.contains(&"-S".to_owned()));
        let memory: Value = serde_json::from_str(value_after(&args, "-object")[0]).unwrap();
        assert_eq!(memory["mem-path"], "a,b");
        assert_eq!(
            (&memory["readonly"], &memory["share"]),
            (&json!(true), &json!(false))
        );
        let disk: Value = serde_json::from_str(value_after(&args, "-blockdev")[0]).unwrap();
        assert_eq!(disk["read-only"], false);
        assert_eq!(disk["backing"]["read-only"], true);
        assert_eq!(
            disk["backing"]["backing"]["file"]["filename"],
            "layers/1.qcow2"
        );
        assert_eq!(disk["backing"]["backing"]["backing"], Value::Null);
    }

    #[test]
    fn one_without_a_shape_names_its_disk_opens_its_image_and_waits_for_the_rest() {
        let (hardware, chain) = (hardware(), [disk(1), disk(0)]);
        let args = arguments(&CommandLine {
            memory: Memory::Later,
            start: Start::Shapeless,
            disk: &chain,
            ..line(&hardware)
        });
        assert!(!value_after(&args, "-machine")[0].contains("memory-backend"));
        assert!(value_after(&args, "-object").is_empty());
        let [image] = value_after(&args, "-blockdev")[..] else {
            panic!("one node is opened ahead");
        };
        let image: Value = serde_json::from_str(image).unwrap();
        assert_eq!(image["node-name"], "d-0");
        assert_eq!(image["read-only"], true);
        assert_eq!(image["backing"], Value::Null);
        let devices = value_after(&args, "-device");
        assert!(devices.iter().any(|device| device.contains("\"d-1\"")));
        assert_eq!(args.last().map(String::as_str), Some("-preconfig"));
    }

    #[test]
    fn every_node_of_a_chain_names_its_format_and_its_backing() {
        let chain: Vec<_> = (0..5).map(disk).collect();
        assert_eq!(disk_chain(&chain[..1], Some("d-9"))["backing"], "d-9");
        let mut node = &disk_chain(&chain, None);
        for _ in 0..5 {
            assert_eq!(node["driver"], "qcow2");
            assert_eq!(node["file"]["driver"], "file");
            assert!(node.get("backing").is_some());
            node = &node["backing"];
        }
        assert_eq!(*node, Value::Null);
    }

    #[test]
    fn a_q35_has_its_version_pci_devices_and_free_ports() {
        let (mut hardware, chain) = (hardware(), [disk(1)]);
        hardware.machine = MachineType::Q35;
        let line = CommandLine {
            disk: &chain,
            ..line(&hardware)
        };
        let args = arguments(&line);
        let machine = value_after(&args, "-machine")[0];
        assert!(machine.starts_with("pc-q35-10.0,memory-backend=m,hpet=off"));
        let drivers: Vec<String> = value_after(&args, "-device")
            .into_iter()
            .map(|device| serde_json::from_str::<Value>(device).unwrap()["driver"].to_string())
            .collect();
        let ports = drivers.iter().filter(|d| d.contains("pcie-root-port"));
        assert_eq!(ports.count(), FREE_PORTS as usize);
        assert_eq!(
            drivers[FREE_PORTS as usize..],
            [
                "\"pvpanic-pci\"",
                "\"virtio-blk-pci\"",
                "\"virtio-rng-pci\""
            ]
        );
    }

    #[test]
    fn a_guest_reaches_out_where_it_may() {
        let mut hardware = hardware();
        let without = arguments(&line(&hardware));
        assert!(value_after(&without, "-netdev").is_empty());
        hardware.devices.push(Device::Network);
        let mut closed = line(&hardware);
        closed.network.egress = false;
        for (line, restrict) in [(line(&hardware), "off"), (closed, "on")] {
            let args = arguments(&line);
            let backend = value_after(&args, "-netdev")[0];
            assert!(backend.starts_with("user,id=net,"), "{backend}");
            assert!(backend.ends_with(&format!("restrict={restrict}")));
            let card = value_after(&args, "-device").into_iter().last().unwrap();
            let card: Value = serde_json::from_str(card).unwrap();
            assert_eq!(card["mac"], "02:00:00:00:00:1f");
            assert_eq!(card["netdev"], "net");
        }
    }

    #[test]
    fn a_groups_card_is_on_its_socket_and_a_microvm_has_a_slot_for_it() {
        let mut hardware = hardware();
        hardware.devices = vec![
            Device::Disk,
            Device::Rng,
            Device::Port,
            Device::Network,
            Device::GroupNetwork,
        ];
        let chain = [disk(1)];
        let mut line = CommandLine {
            disk: &chain,
            ..line(&hardware)
        };
        line.fds.group = Some(6);
        let args = arguments(&line);
        assert_eq!(
            value_after(&args, "-netdev")[1],
            "dgram,id=group,local.type=fd,local.str=6"
        );
        let devices: Vec<Value> = value_after(&args, "-device")
            .into_iter()
            .map(|device| serde_json::from_str(device).unwrap())
            .collect();
        let card = devices.last().unwrap();
        assert_eq!(card["mac"], "02:00:00:00:01:03");
        assert_eq!(card["netdev"], "group");
        let virtio = |device: &&Value| device["driver"].as_str().unwrap().starts_with("virtio-");
        assert!(
            devices.iter().filter(virtio).count() <= 8,
            "the slots of a microvm"
        );
    }

    #[test]
    fn a_microvm_has_an_interval_timer_only_when_it_needs_one() {
        let with = |devices: &[Device]| MachineType::Microvm.properties(devices);
        assert_eq!(with(&[Device::Rng]), ",ioapic2=off,pit=off");
        assert_eq!(with(&[Device::Rng, Device::Pit]), ",ioapic2=off");
        assert!(!MachineType::Q35.properties(&[]).contains("pit"));
    }

    #[test]
    fn machine_types_are_known_by_their_whole_name() {
        for machine in MachineType::ALL {
            assert_eq!(MachineType::named(machine.name()), Some(machine));
        }
        for name in ["q35", "pc-q35-9.2", ""] {
            assert_eq!(MachineType::named(name), None);
        }
    }

    #[test]
    fn only_what_starts_a_kernel_is_a_boot_rom() {
        assert!(is_boot_rom("/rom@genroms/linuxboot_dma.bin"));
        for block in [
            "pc.bios",
            "/rom@genroms/kvmvapic.bin",
            "/rom@etc/acpi/tables",
        ] {
            assert!(!is_boot_rom(block), "{block}");
        }
    }

    #[test]
    fn a_machine_without_a_disk_has_no_disk_device() {
        let hardware = hardware();
        let line = CommandLine {
            start: Start::Boot {
                kernel: "k".into(),
                initrd: None,
                cmdline: "console=ttyS0".into(),
            },
            ..line(&hardware)
        };
        let args = arguments(&line);
        assert!(value_after(&args, "-blockdev").is_empty());
        let devices = value_after(&args, "-device");
        assert!(!devices.iter().any(|device| device.contains("blk")));
        assert!(devices[0].contains("\"pvpanic\""), "{devices:?}");
        assert_eq!(value_after(&args, "-append"), ["console=ttyS0"]);
    }
}
