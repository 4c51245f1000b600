//! What the agent asks of the kernel that has no safe call: entropy, network cards, a program's terminal. The only unsafe code of the
//! agent.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
};

use std::os::unix::process::CommandExt as _;

use tokio::io::{Interest, unix::AsyncFd};

/// `RNDADDENTROPY` of `random(4)`.
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
/// `RNDRESEEDCRNG`.
const RESEED: libc::c_ulong = 0x5207;
/// The most entropy that is added at once, bytes.
pub const MOST_ENTROPY: usize = 256;

#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    size: libc::c_int,
    bytes: [u8; MOST_ENTROPY],
}

/// Mixes random bytes into the kernel's pool through its device, counts them as such, and has the kernel's generator begin anew with them.
///
/// # Errors
/// The kernel's; there are more than [`MOST_ENTROPY`] bytes.
pub fn add_entropy(random: &File, bytes: &[u8]) -> io::Result<()> {
    let mut info = PoolInfo {
        entropy_count: 8 * bytes.len() as libc::c_int,
        size: bytes.len() as libc::c_int,
        bytes: [0; MOST_ENTROPY],
    };
    info.bytes
        .get_mut(..bytes.len())
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(bytes);
    // SAFETY: RNDADDENTROPY reads a struct rand_pool_info, which PoolInfo has the form of, with `size` bytes in it.
    check(unsafe { libc::ioctl(random.as_raw_fd(), ADD_ENTROPY as _, &raw const info) })?;
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RESEED as _) })?;
    Ok(())
}

/// Sets the clock forward, or back: by so much, however long whoever calls this stands still meanwhile.
///
/// # Errors
/// The kernel's.
pub fn shift_clock(by_ns: i64) -> io::Result<()> {
    // SAFETY: a struct timex is plain numbers, and none of them changes anything unless `modes` says so.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET;
    // In microseconds: the switch to nanoseconds would be one for all who adjust the clock.
    let by_us = by_ns / 1000;
    change.time.tv_sec = by_us.div_euclid(1_000_000);
    change.time.tv_usec = by_us.rem_euclid(1_000_000);
    // SAFETY: it reads and writes one struct timex. What it returns is the clock's state, or less than 0.
    check(unsafe { libc::adjtimex(&raw mut change) })?;
    Ok(())
}

/// A network card, by its name.
#[derive(Debug)]
pub struct Card {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Card {
    /// For the card of this name. Whether there is one shows when something is asked of it.
    ///
    /// # Errors
    /// The kernel's; the name is too long.
    pub fn named(name: &str) -> io::Result<Self> {
        // SAFETY: takes no memory; the result is checked.
        let socket = check(unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
        })?;
        let mut field = [0; libc::IFNAMSIZ];
        if name.len() >= field.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in field.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self {
            // SAFETY: just made, and nobody else has it.
            socket: unsafe { OwnedFd::from_raw_fd(socket) },
            name: field,
        })
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: all of it are numbers and arrays of numbers, for which zero is right.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request
    }

    fn call(&self, what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: all that are asked for here take a struct ifreq.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), what as _, &raw mut *request) })?;
        Ok(())
    }

    /// Its hardware address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mac(&self) -> io::Result<[u8; 6]> {
        let mut request = self.request();
        self.call(libc::SIOCGIFHWADDR, &mut request)?;
        // SAFETY: this call fills this member.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        Ok(std::array::from_fn(|i| data[i] as u8))
    }

    /// Changes its hardware address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        let mut request = self.request();
        let mut data = [0; 14];
        for (to, from) in data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr = libc::sockaddr {
            sa_family: libc::ARPHRD_ETHER,
            sa_data: data,
        };
        self.call(libc::SIOCSIFHWADDR, &mut request)
    }

    /// Its IPv4 address, if it has one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> io::Result<Option<Ipv4Addr>> {
        let mut request = self.request();
        match self.call(libc::SIOCGIFADDR, &mut request) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(None),
            other => other?,
        }
        // SAFETY: this call fills this member, as a sockaddr_in.
        let data = unsafe { request.ifr_ifru.ifru_addr }.sa_data;
        Ok(Some(Ipv4Addr::new(
            data[2] as u8,
            data[3] as u8,
            data[4] as u8,
            data[5] as u8,
        )))
    }

    /// Gives it an IPv4 address in a network of this prefix.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_address(&self, address: Ipv4Addr, prefix: u32) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = internet(address);
        self.call(libc::SIOCSIFADDR, &mut request)?;
        let mask = u32::MAX
            .checked_shl(32u32.saturating_sub(prefix))
            .unwrap_or_default();
        let mut request = self.request();
        request.ifr_ifru.ifru_netmask = internet(Ipv4Addr::from_bits(mask));
        self.call(libc::SIOCSIFNETMASK, &mut request)
    }

    /// Turns it on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn up(&self) -> io::Result<()> {
        let mut request = self.request();
        self.call(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: this call fills this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Sends everything that is not for its network to this address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_gateway(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: all of it are numbers and a pointer, for which zero is right.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = internet(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = internet(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = internet(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: SIOCADDRT takes a struct rtentry.
        match check(unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                libc::SIOCADDRT as _,
                &raw const route,
            )
        }) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// An IPv4 address as the kernel takes it: two bytes of port, then its own four.
fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

/// A descriptor whose readiness the runtime tells.
///
/// # Errors
/// The runtime's.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd gives the same descriptor for as long as it lives, and nothing takes it out of the AsyncFd.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Has a program lead a session whose terminal is its standard input.
pub fn with_terminal(command: &mut Command) {
    // SAFETY: both are system calls that are safe after fork, and allocate nothing.
    unsafe {
        command.pre_exec(|| {
            check(libc::setsid())?;
            check(libc::ioctl(0, libc::TIOCSCTTY as _, 0))?;
            Ok(())
        });
    }
}

/// Has a program be this user, in these groups.
pub fn with_user(command: &mut Command, uid: u32, gid: u32, groups: Vec<u32>) {
    // Not by the command's own means: they come before all that is added, and who is somebody else by then may not choose its groups.
    // SAFETY: all are system calls that are safe after fork, on memory that was allocated before.
    unsafe {
        command.pre_exec(move || {
            check(libc::setgroups(groups.len(), groups.as_ptr()))?;
            check(libc::setgid(gid))?;
            check(libc::setuid(uid))?;
            Ok(())
        });
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
