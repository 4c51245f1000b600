//! Becoming somebody: what must be so before a guest can be said to be another VM than the one it was forked from. All of it is
//! a few system calls and small files, done at once, in this order: nobody waits longer than they take.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use fp_guest::{
    channel::message::{Failed, Hello, Identity, Network},
    group,
};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::kernel::{self, Card};

/// How far the clock may be off before it is set.
const CLOCK_OFF: Duration = Duration::from_millis(1);
/// Where the agent keeps what it must know when it was started anew.
const STATE: &str = "run/forkypig";
/// The file there that says who this guest has become.
const INCARNATION: &str = "incarnation";
/// Where the kernel lists network cards.
const CARDS: &str = "/sys/class/net";
/// How long a network card is waited for, once: while a guest boots, its driver may be loaded after the channel's.
const CARD_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether it is there.
const CARD_PAUSE: Duration = Duration::from_millis(20);

/// What of a file system is looked at and written: `/`, but for tests.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl Root {
    /// A file below it.
    pub fn file(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }
}

/// What becoming somebody works with. It is opened once, and forked with the guest: under emulation a fork's first steps take most of
/// their time for code that its process has not run before, and finding files by their names is a lot of it.
#[derive(Debug, Default)]
pub struct Tools {
    root: Root,
    random: Option<File>,
    machine_id: Option<File>,
    incarnation: Option<File>,
    card: Option<Card>,
    /// Whether a card was waited for in vain: it is not waited for again.
    has_no_card: bool,
    /// What the card was given last.
    network: Option<Network>,
    /// What the card on its group's network was given.
    group: Option<Network>,
}

impl Tools {
    /// Does all steps, whatever becomes of the ones before, and gives those that failed.
    pub fn become_it(&mut self, hello: &Hello, identity: &Identity) -> Vec<Failed> {
        let mut all = Vec::new();
        let mut step = |step: &str, result: io::Result<()>| {
            all.extend(result.err().map(|error| Failed {
                step: step.to_owned(),
                reason: error.to_string(),
            }));
        };
        step("entropy", self.add_entropy(&hello.entropy));
        step("clock", set_clock(hello.clock_ns));
        step("machine-id", self.set_machine_id(&identity.machine_id));
        if let Some(network) = &identity.network {
            step("network", self.set_network(Path::new(CARDS), network));
        }
        if let Some(group) = &identity.group {
            step("group-network", self.set_group(Path::new(CARDS), group));
        }
        step("incarnation", self.remember(&identity.incarnation));
        // At the end: it wakes who watches it, systemd and its journal, which would take the processor.
        let named = rustix::system::sethostname(identity.name.as_bytes());
        step("hostname", named.map_err(io::Error::from));
        if identity.secrets_lost {
            let lost = "the host's agent was started anew before they were handed over";
            step("secrets", Err(io::Error::other(lost)));
        }
        all
    }

    fn add_entropy(&mut self, bytes: &[u8]) -> io::Result<()> {
        let random = match &self.random {
            Some(random) => random,
            None => {
                let random = File::options().write(true).open("/dev/urandom")?;
                self.random.insert(random)
            }
        };
        kernel::add_entropy(random, bytes)
    }

    /// The machine's id is kept in memory, and shows in the place of the disk's: a fork then changes nothing on its disk. The next boot
    /// is told its id anew.
    fn set_machine_id(&mut self, id: &str) -> io::Result<()> {
        let path = self.root.file("etc/machine-id");
        let shown = match fs::metadata(&path) {
            // An image without one does not want one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let own = || Ok::<_, io::Error>(state_folder(&self.root)?.join("machine-id"));
        let file = match &self.machine_id {
            Some(file) => file,
            None => self.machine_id.insert(write_only(&own()?)?),
        };
        // Always as long: nothing of another is left.
        file.write_all_at(format!("{id}\n").as_bytes(), 0)?;
        let place = |at: &Metadata| (at.dev(), at.ino());
        if place(&file.metadata()?) != place(&shown) {
            // Not yet, or not any more: systemd takes away what it finds there in the course of a boot.
            rustix::mount::mount_bind(&own()?, &path)?;
        }
        Ok(())
    }

    fn set_network(&mut self, cards: &Path, network: &Network) -> io::Result<()> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mac: [u8; 6] = network
            .mac
            .as_slice()
            .try_into()
            .map_err(|_| invalid("a hardware address has six bytes"))?;
        let card = match &self.card {
            Some(card) => card,
            None => {
                let patience = match self.has_no_card {
                    true => Duration::ZERO,
                    false => CARD_PATIENCE,
                };
                let first = card_within(patience, || first_card(cards))?;
                self.has_no_card = first.is_none();
                let first = first.ok_or_else(|| invalid("there is no network card"))?;
                self.card.insert(Card::named(&first.name)?)
            }
        };
        if card.mac()? != mac {
            card.set_mac(mac)?;
        }
        let rest = |of: &Network| Network {
            mac: Vec::new(),
            ..of.clone()
        };
        if self.network.as_ref().map(rest) != Some(rest(network)) {
            configure(&self.root, card, network)?;
        }
        self.network = Some(network.clone());
        Ok(())
    }

    /// A copy of a member has all of it from its parent, and does nothing here.
    fn set_group(&mut self, cards: &Path, network: &Network) -> io::Result<()> {
        if self.group.as_ref() == Some(network) {
            return Ok(());
        }
        let name = card_within(CARD_PATIENCE, || {
            let mut all = all_cards(cards)?.into_iter();
            Ok(all.find(|card| card.mac.is_some_and(|mac| mac[..] == network.mac[..])))
        })?;
        let name = name.ok_or_else(|| io::Error::other("there is no card for it"))?;
        configure(&self.root, &Card::named(&name.name)?, network)?;
        self.group = Some(network.clone());
        Ok(())
    }

    fn remember(&mut self, incarnation: &str) -> io::Result<()> {
        let file = match &self.incarnation {
            Some(file) => file,
            None => {
                let file = write_only(&state_folder(&self.root)?.join(INCARNATION))?;
                self.incarnation.insert(file)
            }
        };
        // Another one may be shorter.
        file.write_all_at(format!("{incarnation}\n").as_bytes(), 0)
    }
}

/// Opens a small file to be written anew, again and again.
fn write_only(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
}

/// Sets the clock, unless it is right.
///
/// # Errors
/// The kernel's.
pub fn set_clock(host_ns: u64) -> io::Result<()> {
    if clock_ns().abs_diff(host_ns) < CLOCK_OFF.as_nanos() as u64 {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: (host_ns / 1_000_000_000) as i64,
        tv_nsec: (host_ns % 1_000_000_000) as i64,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// What time it is: nanoseconds since the epoch. A clock before 1970 counts as 1970.
pub fn clock_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + now.tv_nsec as u64
}

/// Has the guest know its name after a boot, too. Not a step that anybody waits for: it writes to the disk.
///
/// # Errors
/// The file system's.
pub fn keep_hostname(root: &Root, name: &str) -> io::Result<()> {
    let path = root.file("etc/hostname");
    let before = read_if_there(&path)?;
    write_if_other(&path, &format!("{name}\n"))?;
    let hosts = root.file("etc/hosts");
    match (read_if_there(&hosts)?, before) {
        (Some(text), Some(before)) => {
            write_if_other(&hosts, &renamed_hosts(&text, before.trim(), name))
        }
        _ => Ok(()),
    }
}

fn read_if_there(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The lines of `/etc/hosts` with the host's own address under its new name.
fn renamed_hosts(text: &str, before: &str, name: &str) -> String {
    let line = |line: &str| {
        let own = line
            .split_whitespace()
            .next()
            .is_some_and(|address| address == "127.0.1.1");
        if !own {
            return line.to_owned();
        }
        let words = line.split_whitespace();
        let renamed = words.map(|word| if word == before { name } else { word });
        renamed.collect::<Vec<_>>().join("\t")
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.push(String::new());
    lines.join("\n")
}

/// Writes a small file in place, which costs nothing when it is right already.
fn write_if_other(path: &Path, content: &str) -> io::Result<()> {
    match fs::read_to_string(path) {
        Ok(there) if there == content => Ok(()),
        Err(error)
            if error.kind() != io::ErrorKind::NotFound
                && error.kind() != io::ErrorKind::InvalidData =>
        {
            Err(error)
        }
        _ => fs::write(path, content),
    }
}

/// All of a card but its hardware address.
fn configure(root: &Root, card: &Card, network: &Network) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let address: Ipv4Addr = network
        .address
        .parse()
        .map_err(|_| invalid("the address is none"))?;
    if card.address()? != Some(address) {
        card.set_address(address, network.prefix)?;
        card.up()?;
    }
    if !network.gateway.is_empty() {
        let gateway = network
            .gateway
            .parse()
            .map_err(|_| invalid("the gateway's address is none"))?;
        card.set_gateway(gateway)?;
    }
    let resolver = root.file("etc/resolv.conf");
    // Whoever has said something there knows better.
    let unsaid = read_if_there(&resolver)?.is_none_or(|text| text.trim().is_empty());
    if unsaid && !network.dns.is_empty() {
        fs::write(&resolver, format!("nameserver {}\n", network.dns))?;
    }
    Ok(())
}

/// A network card that is a device.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    name: String,
    /// Its hardware address; `None` where it has none of six bytes.
    mac: Option<[u8; 6]>,
}

/// A network card, which may come yet.
fn card_within(
    patience: Duration,
    look: impl Fn() -> io::Result<Option<Found>>,
) -> io::Result<Option<Found>> {
    let begun = Instant::now();
    loop {
        let found = look()?;
        if found.is_some() || begun.elapsed() >= patience {
            return Ok(found);
        }
        thread::sleep(CARD_PAUSE);
    }
}

/// The first network card that is a device, and on no group's network.
fn first_card(cards: &Path) -> io::Result<Option<Found>> {
    let of_group = |card: &Found| card.mac.and_then(group::number_of).is_some();
    Ok(all_cards(cards)?.into_iter().find(|card| !of_group(card)))
}

/// All network cards that are devices, by their names.
fn all_cards(cards: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cards)? {
        let entry = entry?;
        if !entry.path().join("device").exists() {
            continue;
        }
        let mac = read_if_there(&entry.path().join("address"))?;
        found.extend(entry.file_name().into_string().map(|name| Found {
            name,
            mac: mac.and_then(|text| six_bytes(text.trim())),
        }));
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Six bytes, written as hardware addresses are.
fn six_bytes(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes.collect::<Result<Vec<u8>, _>>().ok()?.try_into().ok()
}

/// Where the agent keeps what it must still know when it was started anew; it is gone with the boot, and forked with the guest.
fn state_folder(root: &Root) -> io::Result<PathBuf> {
    let folder = root.file(STATE);
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Who this guest has become, if it has.
pub fn remembered(root: &Root) -> Option<String> {
    let text = fs::read_to_string(root.file(STATE).join(INCARNATION)).ok()?;
    text.lines().next().map(str::to_owned)
}

/// Takes note that all that follows on becoming somebody is done.
///
/// # Errors
/// The file system's.
pub fn remember_settled(root: &Root, incarnation: &str) -> io::Result<()> {
    fs::write(state_folder(root)?.join("settled"), incarnation)
}

/// Whether all that follows on becoming somebody was done.
pub fn was_settled(root: &Root, incarnation: &str) -> bool {
    fs::read_to_string(root.file(STATE).join("settled")).is_ok_and(|settled| settled == incarnation)
}

/// Whether the image wants SSH host keys of its own for each fork.
pub fn wants_host_keys(root: &Root) -> bool {
    root.file("etc/forkypig/ssh-host-keys").exists()
}

/// Puts SSH host keys in the place of those that are there, of whatever kind.
///
/// # Errors
/// The file system's.
pub fn set_host_keys(root: &Root, private: &str, public: &str) -> io::Result<()> {
    let folder = root.file("etc/ssh");
    fs::create_dir_all(&folder)?;
    let private_path = folder.join("ssh_host_ed25519_key");
    let new = folder.join("ssh_host_ed25519_key.new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(private.as_bytes())?;
    fs::write(folder.join("ssh_host_ed25519_key.pub"), public)?;
    fs::rename(&new, &private_path)?;
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let other = name.starts_with("ssh_host_") && !name.starts_with("ssh_host_ed25519_key");
        if other {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("etc")).unwrap();
        let root = Root(folder.path().to_owned());
        (folder, root)
    }

    #[test]
    fn an_image_without_a_machine_id_gets_none() {
        let (_folder, root) = root();
        let mut tools = Tools {
            root: root.clone(),
            ..Tools::default()
        };
        tools.set_machine_id("aa").unwrap();
        assert!(!root.file("etc/machine-id").exists());
    }

    #[test]
    fn a_name_is_kept_with_the_hosts_own_line() {
        let (_folder, root) = root();
        fs::write(root.file("etc/hostname"), "web\n").unwrap();
        fs::write(root.file("etc/hosts"), "127.0.1.1 web\n").unwrap();
        keep_hostname(&root, "web-1").unwrap();
        let read = |file: &str| fs::read_to_string(root.file(file)).unwrap();
        assert_eq!(read("etc/hostname"), "web-1\n");
        assert_eq!(read("etc/hosts"), "127.0.1.1\tweb-1\n");
    }

    #[test]
    fn only_a_hosts_own_line_is_renamed() {
        let text = "127.0.0.1 localhost web\n127.0.1.1 web.lan web\n10.0.0.7 web\n";
        assert_eq!(
            renamed_hosts(text, "web", "web-1"),
            "127.0.0.1 localhost web\n127.0.1.1\tweb.lan\tweb-1\n10.0.0.7 web\n"
        );
    }

    #[test]
    fn who_it_is_survives_the_agent() {
        let (_folder, root) = root();
        assert_eq!(remembered(&root), None);
        let mut tools = Tools {
            root: root.clone(),
            ..Tools::default()
        };
        tools.remember("01A.10").unwrap();
        tools.remember("01A.1").unwrap();
        assert_eq!(remembered(&root).as_deref(), Some("01A.1"));
        assert!(!was_settled(&root, "01A.1"));
        remember_settled(&root, "01A.1").unwrap();
        assert!(was_settled(&root, "01A.1") && !was_settled(&root, "01A.2"));
    }

    #[test]
    fn host_keys_take_the_place_of_all_others() {
        let (_folder, root) = root();
        fs::create_dir(root.file("etc/ssh")).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
            fs::write(root.file("etc/ssh").join(name), "old").unwrap();
        }
        set_host_keys(&root, "private", "public").unwrap();
        let mut names: Vec<String> = fs::read_dir(root.file("etc/ssh"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "ssh_host_ed25519_key",
                "ssh_host_ed25519_key.pub",
                "sshd_config"
            ]
        );
        let key = root.file("etc/ssh/ssh_host_ed25519_key");
        assert_eq!(fs::read_to_string(&key).unwrap(), "private");
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn the_first_card_that_is_a_device_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["lo", "eth1/device", "eth0/device", "dummy0"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let first = || first_card(folder.path()).unwrap().map(|card| card.name);
        assert_eq!(first().as_deref(), Some("eth0"));
        // A group's comes first by its name.
        let address = folder.path().join("eth0/address");
        fs::write(&address, "02:66:70:67:00:03\n").unwrap();
        assert_eq!(first().as_deref(), Some("eth1"));
        let all = all_cards(folder.path()).unwrap();
        assert_eq!(all[0].mac, Some(group::mac(3)));
        assert_eq!(all[1].mac, None);
    }

    #[test]
    fn a_card_whose_driver_comes_later_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let cards = folder.path().to_owned();
        let first = |patience, cards: &Path| {
            let found = card_within(patience, || first_card(cards)).unwrap();
            found.map(|card| card.name)
        };
        assert_eq!(first(CARD_PAUSE, &cards), None);
        let driver = thread::spawn(move || {
            thread::sleep(CARD_PAUSE * 5);
            fs::create_dir_all(cards.join("eth0/device")).unwrap();
        });
        let found = first(CARD_PATIENCE, folder.path());
        assert_eq!(found.as_deref(), Some("eth0"));
        driver.join().unwrap();
    }
}
