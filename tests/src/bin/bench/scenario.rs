//! What is measured, as data.

/// How a guest keeps busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Its memory, MiB.
    pub memory_mib: u32,
    /// How much of it is filled once after it booted, MiB.
    pub fill_mib: u32,
    /// How much it writes on and on, MiB a second.
    pub rate_mib: u32,
    /// Whether it writes ten records a second to its memory, its disk (synced) and its console.
    pub records: bool,
}

/// One scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scenario {
    /// Guests forked again and again, one fork each, ended before the next.
    Repeated {
        guest: Guest,
        parents: u32,
        rounds: u32,
    },
    /// A line of forks of forks, and at each of these depths the last of the line forked again and again.
    Deep {
        guest: Guest,
        depths: Vec<u32>,
        rounds: u32,
    },
    /// A snapshot forked once in a request, so many times: without anything ready, from processes in waiting, preloaded.
    Ready { rounds: u32 },
    /// What working inside a fork costs; so many MiB go through a program.
    Inside { rounds: u32, mib: u32 },
    /// A snapshot forked many at once, so many times: with nothing ready, or preloaded.
    Burst { forks: u32, warm: bool, rounds: u32 },
    /// More forks at once than there are processors for.
    Many { forks: u32 },
    /// A bare QEMU with the same files, QEMU's own way, and the prototypes.
    Yardsticks { rounds: u32 },
}

impl Scenario {
    /// Its name in the table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Repeated { .. } => "repeated",
            Self::Deep { .. } => "deep",
            Self::Ready { .. } => "ready",
            Self::Inside { .. } => "inside",
            Self::Burst { .. } => "burst",
            Self::Many { .. } => "many",
            Self::Yardsticks { .. } => "yardstick",
        }
    }
}

/// One that writes its records and nothing else.
pub const fn quiet(memory_mib: u32) -> Guest {
    Guest {
        memory_mib,
        fill_mib: 0,
        rate_mib: 0,
        records: true,
    }
}

/// One that does nothing: where many run at once, it is the forks that are measured, and not what they do.
pub const IDLE: Guest = Guest {
    records: false,
    ..quiet(256)
};

/// Everything, or what fits into five minutes.
pub fn all(quick: bool) -> Vec<Scenario> {
    let busy = Guest {
        memory_mib: 2048,
        fill_mib: 1024,
        rate_mib: 100,
        records: true,
    };
    if quick {
        return vec![
            Scenario::Yardsticks { rounds: 5 },
            Scenario::Repeated {
                guest: quiet(256),
                parents: 2,
                rounds: 10,
            },
            Scenario::Repeated {
                guest: busy,
                parents: 1,
                rounds: 4,
            },
            Scenario::Deep {
                guest: quiet(256),
                depths: vec![1, 8],
                rounds: 5,
            },
            Scenario::Ready { rounds: 10 },
            Scenario::Inside { rounds: 5, mib: 64 },
            Scenario::Burst {
                forks: 10,
                warm: false,
                rounds: 1,
            },
            Scenario::Burst {
                forks: 10,
                warm: true,
                rounds: 1,
            },
            Scenario::Burst {
                forks: 100,
                warm: false,
                rounds: 1,
            },
        ];
    }
    vec![
        Scenario::Yardsticks { rounds: 20 },
        Scenario::Repeated {
            guest: quiet(256),
            parents: 5,
            rounds: 20,
        },
        Scenario::Repeated {
            guest: quiet(2048),
            parents: 1,
            rounds: 20,
        },
        Scenario::Repeated {
            guest: quiet(8192),
            parents: 1,
            rounds: 20,
        },
        Scenario::Repeated {
            guest: Guest {
                memory_mib: 8192,
                fill_mib: 6144,
                rate_mib: 0,
                records: true,
            },
            parents: 1,
            rounds: 20,
        },
        Scenario::Repeated {
            guest: busy,
            parents: 1,
            rounds: 20,
        },
        Scenario::Repeated {
            guest: Guest {
                memory_mib: 4096,
                fill_mib: 2048,
                rate_mib: 0,
                records: true,
            },
            parents: 1,
            rounds: 5,
        },
        Scenario::Deep {
            guest: quiet(256),
            depths: vec![1, 2, 8, 32],
            rounds: 20,
        },
        // It writes what a guest does that does nothing: so much is little at any depth.
        Scenario::Deep {
            guest: IDLE,
            depths: vec![2, 32],
            rounds: 20,
        },
        Scenario::Ready { rounds: 30 },
        Scenario::Inside {
            rounds: 20,
            mib: 1024,
        },
        Scenario::Burst {
            forks: 10,
            warm: false,
            rounds: 3,
        },
        Scenario::Burst {
            forks: 10,
            warm: true,
            rounds: 3,
        },
        Scenario::Burst {
            forks: 100,
            warm: false,
            rounds: 3,
        },
        Scenario::Burst {
            forks: 100,
            warm: true,
            rounds: 3,
        },
        Scenario::Many { forks: 1000 },
        Scenario::Yardsticks { rounds: 20 },
    ]
}
