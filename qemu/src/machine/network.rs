//! The network of a machine's group. Its card is on one end of a pair of sockets, which QEMU is started with; the other end is in the
//! process as well, unused, to be taken from there by whoever hands on what is sent: when that ends, nothing is lost but what was on its way, and
//! the next one takes it again. No path leads to it, and nobody else can have it.

use std::{io, os::fd::OwnedFd};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{PidfdGetfdFlags, pidfd_getfd},
};

use super::{Machine, MachineError, system};
use crate::{
    spec::{Device, Hardware},
    sys::spawn::FIRST_FD,
};

/// Both ends for a machine that has such a card, the card's first.
pub(super) fn pair(hardware: &Hardware) -> io::Result<Option<[OwnedFd; 2]>> {
    if !hardware.devices.contains(&Device::GroupNetwork) {
        return Ok(None);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Each message is a frame, and either end knows when the other has gone.
    let (card, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(Some([card, other]))
}

/// The number of the card's end in the process: behind the sockets that every machine has. The other end follows.
pub(super) fn card_end(hardware: &Hardware) -> i32 {
    FIRST_FD + 2 + i32::from(hardware.has_port())
}

impl Machine {
    /// Whether it has a card on its group's network.
    pub fn has_group_card(&self) -> bool {
        self.record.hardware.devices.contains(&Device::GroupNetwork)
    }

    /// The end by which it is reached on its group's network, a frame in each message. What its process did with it is its own affair: it is
    /// a guest's.
    pub fn group_end(&self) -> Result<OwnedFd, MachineError> {
        if !self.has_group_card() {
            return Err(MachineError::NotReady(
                "it has no card for a group's network",
            ));
        }
        let number = card_end(&self.record.hardware) + 1;
        let cannot = "cannot take the socket of the group's network";
        let pidfd = self.process.pidfd();
        let end = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty());
        end.map_err(io::Error::from).map_err(system(cannot))
    }
}
