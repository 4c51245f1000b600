//! Hosts as network namespaces, joined by a switch, and the ways to cut them off from each other.
//!
//! Nothing of it has a name on this machine: a namespace is there while its descriptor is open here, or a process runs in it,
//! and what is in it goes with it. So nothing is left over, however a test ends.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The number of the host that clients are on.
const CLIENTS: usize = 254;

/// Where what is sent to nobody goes.
const NOBODY: &str = "02:00:00:00:00:ff";

/// A network namespace.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    fn new() -> anyhow::Result<Self> {
        // A process makes it, and ends once it is open here.
        let mut maker = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo; read -r _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare")?;
        let mut said = [0; 1];
        let made = maker.stdout.take().context("no output")?.read(&mut said)?;
        anyhow::ensure!(made == 1, "no network namespace can be made: is this root?");
        let file = File::open(format!("/proc/{}/ns/net", maker.id()))?;
        drop(maker.stdin.take());
        maker.wait()?;
        let namespace = Self(file);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A command that runs in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path()))
            .arg("--")
            .arg(program);
        command
    }

    /// The same, for others to have.
    pub fn share(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Moves the calling thread into it, for good.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(
            self.0.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    /// Carries out commands of `ip`, one a line.
    fn ip(&self, lines: &str) -> anyhow::Result<()> {
        let mut ip = self.command("ip");
        let mut ip = ip
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("ip")?;
        ip.stdin
            .take()
            .context("no input")?
            .write_all(lines.as_bytes())?;
        let output = ip.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "ip: {}: {lines}", said.trim());
        Ok(())
    }
}

/// Hosts on one switch, and one more for clients. Hosts count from 1 on.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    hosts: Vec<std::sync::Arc<Namespace>>,
    clients: Namespace,
}

impl Network {
    /// So many hosts, which all reach each other.
    pub fn of(hosts: usize) -> anyhow::Result<Self> {
        let switch = Namespace::new()?;
        switch.ip("link add switch type bridge\nlink set switch up")?;
        let network = Self {
            hosts: (0..hosts)
                .map(|_| Namespace::new().map(Into::into))
                .collect::<anyhow::Result<_>>()?,
            clients: Namespace::new()?,
            switch,
        };
        for (index, host) in network.hosts.iter().enumerate() {
            network.plug_in(index + 1, host)?;
        }
        network.plug_in(CLIENTS, &network.clients)?;
        Ok(network)
    }

    fn plug_in(&self, number: usize, host: &Namespace) -> anyhow::Result<()> {
        let (port, path) = (port(number), host.path());
        self.switch.ip(&format!(
            "link add {port} type veth peer name eth0 netns {path}\n\
             link set {port} master switch\nlink set {port} up"
        ))?;
        let address = address(number);
        host.ip(&format!(
            "link set eth0 addrgenmode none\naddr add {address}/24 dev eth0\nlink set eth0 up"
        ))
    }

    /// How many hosts there are, without that of the clients.
    pub fn count(&self) -> usize {
        self.hosts.len()
    }

    /// A host.
    pub fn host(&self, number: usize) -> &std::sync::Arc<Namespace> {
        &self.hosts[number - 1]
    }

    /// The host of the clients. Nothing but [`Network::unplug`] cuts it off.
    pub fn clients(&self) -> &Namespace {
        &self.clients
    }

    /// Has one host's packets to another vanish, without a word to either. Answers come through.
    pub fn cut(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let to = address(to);
        let lost = format!("neigh replace {to} lladdr {NOBODY} dev eth0 nud permanent");
        self.host(from).ip(&lost)
    }

    /// Undoes [`Network::cut`].
    pub fn join(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let found = format!("neigh del {} dev eth0", address(to));
        self.host(from).ip(&found)
    }

    /// Takes a host's link down: nobody reaches it, and its own network sees that.
    pub fn unplug(&self, host: usize) -> anyhow::Result<()> {
        self.switch.ip(&format!("link set {} down", port(host)))
    }

    /// Undoes [`Network::unplug`].
    pub fn plug(&self, host: usize) -> anyhow::Result<()> {
        self.switch.ip(&format!("link set {} up", port(host)))
    }
}

/// A host's address.
pub fn address(host: usize) -> String {
    format!("10.77.0.{host}")
}

fn port(host: usize) -> String {
    format!("port{host}")
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, thread, time::Duration};

    use super::*;

    /// Whether one of some packets from one host reaches another: the first may wait for the other's hardware address.
    fn reaches(network: &Network, from: usize, to: usize) -> bool {
        thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                network.host(to).enter().unwrap();
                let socket = UdpSocket::bind((address(to), 7000)).unwrap();
                let patience = Duration::from_millis(1_500);
                socket.set_read_timeout(Some(patience)).unwrap();
                socket
            });
            let receiver = receiver.join().unwrap();
            let sender = scope.spawn(|| {
                network.host(from).enter().unwrap();
                let socket = UdpSocket::bind((address(from), 0)).unwrap();
                for _ in 0..10 {
                    // Refused at once where the link is down.
                    let _sent = socket.send_to(b"x", (address(to), 7000));
                    thread::sleep(Duration::from_millis(100));
                }
            });
            sender.join().unwrap();
            receiver.recv(&mut [0; 8]).is_ok()
        })
    }

    #[test]
    fn hosts_are_cut_off_one_way_both_ways_and_not_at_all() {
        let network = Network::of(3).unwrap();
        for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 2)] {
            assert!(reaches(&network, from, to), "{from} to {to}");
        }
        network.cut(1, 2).unwrap();
        assert!(!reaches(&network, 1, 2));
        assert!(reaches(&network, 2, 1));
        assert!(reaches(&network, 1, 3));
        network.join(1, 2).unwrap();
        assert!(reaches(&network, 1, 2));
        network.unplug(3).unwrap();
        assert!(!reaches(&network, 1, 3));
        assert!(!reaches(&network, 3, 1));
        assert!(reaches(&network, 1, 2));
        network.plug(3).unwrap();
        assert!(reaches(&network, 1, 3));
        assert!(reaches(&network, 3, 1));
    }
}
