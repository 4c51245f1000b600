//! What owners have, and how much they may. What they have is counted as it changes, so that asking costs the same however much
//! that is.

use super::{
    model::{Power, State, Vm},
    response::Rejection,
};

/// What an owner has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// VMs, in whatever state.
    pub vms: u64,
    /// Virtual processors of those that are to run, or stand still.
    pub cpus: u64,
    /// Memory of those, bytes, as their guests see it.
    pub memory_bytes: u64,
    /// Disks of all VMs, bytes, as their guests see them.
    pub disk_bytes: u64,
    /// Snapshots, those included that a fork made for itself and that a suspended VM has.
    pub snapshots: u64,
    /// Images.
    pub images: u64,
}

impl Usage {
    /// What a VM counts for.
    pub fn of_vm(vm: &Vm) -> Self {
        let running = match vm.counts_as_running() {
            true => Self::of_running(vm),
            false => Self::default(),
        };
        Self {
            vms: 1,
            disk_bytes: vm.spec.disk_bytes,
            ..running
        }
    }

    /// What a VM counts for in addition while it is to run.
    pub fn of_running(vm: &Vm) -> Self {
        Self {
            cpus: u64::from(vm.spec.cpus),
            memory_bytes: vm.spec.memory_bytes,
            ..Self::default()
        }
    }

    /// A snapshot.
    pub fn of_snapshot() -> Self {
        Self {
            snapshots: 1,
            ..Self::default()
        }
    }

    /// An image.
    pub fn of_image() -> Self {
        Self {
            images: 1,
            ..Self::default()
        }
    }

    /// With more.
    pub fn plus(self, more: Self) -> Self {
        self.with(more, u64::saturating_add)
    }

    /// Without something that is in it.
    pub fn minus(self, less: Self) -> Self {
        self.with(less, u64::saturating_sub)
    }

    /// So many times as much.
    pub fn times(self, count: u32) -> Self {
        let count = u64::from(count);
        self.with(self, |one, _| one.saturating_mul(count))
    }

    fn with(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            vms: f(self.vms, other.vms),
            cpus: f(self.cpus, other.cpus),
            memory_bytes: f(self.memory_bytes, other.memory_bytes),
            disk_bytes: f(self.disk_bytes, other.disk_bytes),
            snapshots: f(self.snapshots, other.snapshots),
            images: f(self.images, other.images),
        }
    }
}

/// How much an owner may have of each; `None` for as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// See [`Usage::vms`].
    pub vms: Option<u64>,
    /// See [`Usage::cpus`].
    pub cpus: Option<u64>,
    /// See [`Usage::memory_bytes`].
    pub memory_bytes: Option<u64>,
    /// See [`Usage::disk_bytes`].
    pub disk_bytes: Option<u64>,
    /// See [`Usage::snapshots`].
    pub snapshots: Option<u64>,
    /// See [`Usage::images`].
    pub images: Option<u64>,
}

impl Quota {
    /// With what another one says.
    pub fn with(self, said: Self) -> Self {
        Self {
            vms: said.vms.or(self.vms),
            cpus: said.cpus.or(self.cpus),
            memory_bytes: said.memory_bytes.or(self.memory_bytes),
            disk_bytes: said.disk_bytes.or(self.disk_bytes),
            snapshots: said.snapshots.or(self.snapshots),
            images: said.images.or(self.images),
        }
    }

    /// What there would be too much of, one line each. What is not asked for is not looked at: who has too much already can still do
    /// what needs no more of it.
    fn exceeded(&self, used: Usage, more: Usage) -> Vec<String> {
        let of = [
            ("VMs", self.vms, used.vms, more.vms),
            ("processors", self.cpus, used.cpus, more.cpus),
            (
                "bytes of memory",
                self.memory_bytes,
                used.memory_bytes,
                more.memory_bytes,
            ),
            (
                "bytes of disks",
                self.disk_bytes,
                used.disk_bytes,
                more.disk_bytes,
            ),
            ("snapshots", self.snapshots, used.snapshots, more.snapshots),
            ("images", self.images, used.images, more.images),
        ];
        let too_much = of.into_iter().filter_map(|(what, allowed, used, more)| {
            let allowed = allowed?;
            let fits = more == 0 || used.saturating_add(more) <= allowed;
            (!fits)
                .then(|| format!("{used} of {allowed} {what} are used, and {more} more asked for"))
        });
        too_much.collect()
    }
}

impl Vm {
    /// Whether its processors and its memory count: it is to have a process, or is being set to a moment and will have one.
    pub fn counts_as_running(&self) -> bool {
        self.is_going_back || matches!(self.power, Power::Running | Power::Paused)
    }
}

impl State {
    /// What an owner has.
    pub fn used_by(&self, owner: &str) -> Usage {
        Usage {
            snapshots: self.snapshots.count_of(owner),
            images: self.images.count_of(owner),
            ..self.vms.used_by(owner)
        }
    }

    /// All owners that have something, in their order.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        let mut all: Vec<&str> = self.vms.owners().collect();
        all.extend(self.snapshots.owners());
        all.extend(self.images.owners());
        all.sort_unstable();
        all.dedup();
        all.into_iter()
    }

    /// Refuses what an owner may not have in addition, all of it.
    pub(super) fn check_quota(&self, owner: &str, more: Usage) -> Result<(), Rejection> {
        let Some(quota) = self.quotas.get(owner) else {
            return Ok(());
        };
        let exceeded = quota.exceeded(self.used_by(owner), more);
        match exceeded.is_empty() {
            true => Ok(()),
            false => Err(Rejection::OverQuota {
                owner: owner.to_owned(),
                exceeded,
            }),
        }
    }
}
