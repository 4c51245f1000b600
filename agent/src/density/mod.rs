//! Many VMs on one host: how short its memory is, whether equal pages are merged, and what VMs take of it.
//!
//! One task watches and acts ([`run`]); everybody else reads: admission refuses new work while memory is short, the pool gives
//! up what is ready, and the status shows it.

mod checks;
mod driver;
mod merging;
mod pressure;
mod priority;
mod usage;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::v1;
use qemu::{
    ksm::{self, Ksm, Pace},
    sys::PAGE,
};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};

pub use self::{
    checks::check,
    pressure::{Level, Pressure},
    usage::memory_of,
};
use self::{
    driver::{Driver, Outcome},
    merging::{Rate, Rule, SLEEP_MS, Sight, Verdict},
    pressure::{Bounds, Judge, Trigger},
    priority::nice_here,
    usage::{Usage, memory_use},
};
use crate::{
    daemon::options::{MergeMemory, RunOptions},
    errors::chain,
    node::Node,
};

/// How often is looked at the host's memory without being woken.
const TICK: Duration = Duration::from_secs(1);
/// How often merging is judged.
const MERGING_TICK: Duration = Duration::from_secs(5);
/// Between two wakings by the kernel, at least.
const QUIET: Duration = Duration::from_millis(100);

/// How merging goes.
#[derive(Debug, Clone, Default)]
pub struct Merging {
    /// Whether the kernel looks for equal pages.
    pub running: bool,
    /// Why, or why not.
    pub reason: String,
    /// Processor time that this has taken since the host's boot, seconds; `None` where it cannot be seen.
    pub scanner_seconds: Option<f64>,
    /// The same since the last look, part of a processor.
    pub scanner_part: f64,
}

/// What is known of the host's memory.
#[derive(Debug)]
pub struct Density {
    setting: MergeMemory,
    /// Whether the kernel can merge, or why not.
    can_merge: Result<(), String>,
    bounds: Bounds,
    pressure: watch::Sender<Pressure>,
    merging: Mutex<Merging>,
}

impl Density {
    /// Nothing is known yet. `can_merge`: whether VMs are started so that they can be merged.
    pub fn new(options: &RunOptions, can_merge: Result<(), String>) -> Self {
        Self {
            setting: options.merge_memory,
            can_merge,
            bounds: Bounds {
                some: options.pressure_some.into(),
                high: options.pressure_high.into(),
            },
            pressure: watch::Sender::default(),
            merging: Mutex::default(),
        }
    }

    /// How short memory is, now and whenever that changes.
    pub fn pressure(&self) -> watch::Receiver<Pressure> {
        self.pressure.subscribe()
    }

    /// Whether memory is so short that nothing new is begun.
    pub fn is_short(&self) -> bool {
        self.pressure.borrow().level == Level::High
    }

    /// What is wrong, with what to do.
    pub fn problems(&self) -> Vec<String> {
        let pressure = *self.pressure.borrow();
        let mut problems = Vec::new();
        if pressure.level == Level::High {
            problems.push(format!(
                "memory is short ({} of {} MiB available): new VMs and forks are refused and none is kept ready; what runs goes on \
                 until the kernel ends it, forks first; stop or delete VMs",
                pressure.available >> 20,
                pressure.total >> 20
            ));
        }
        if let (MergeMemory::On | MergeMemory::Auto, Err(why)) = (self.setting, &self.can_merge) {
            problems.push(format!("memory is not merged: {why}; start the agent with --merge-memory off, or use a kernel that can"));
        }
        problems
    }

    /// How merging goes.
    pub fn merging(&self) -> Merging {
        // Replaced as a whole: a panic cannot leave it half changed.
        self.merging
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn setting_name(&self) -> &'static str {
        match self.setting {
            MergeMemory::Off => "off",
            MergeMemory::On => "on",
            MergeMemory::Auto => "auto",
        }
    }
}

impl Node {
    /// The host's memory and what this node's processes take of it.
    pub async fn host_memory(&self) -> Result<v1::HostMemory, String> {
        let pids = self.pids();
        let usage = spawn_blocking(move || Usage::of(&pids))
            .await
            .map_err(|panic| panic.to_string())?
            .map_err(|error| format!("what VMs take of memory cannot be read: {error}"))?;
        let seen = pressure::look()
            .map_err(|error| format!("the host's memory cannot be looked at: {error}"))?;
        let merging = self.density.merging();
        let level = match self.density.pressure.borrow().level {
            Level::None => v1::MemoryPressure::None,
            Level::Some => v1::MemoryPressure::Some,
            Level::High => v1::MemoryPressure::High,
        };
        Ok(v1::HostMemory {
            total_bytes: seen.total,
            available_bytes: seen.available,
            pressure: level.into(),
            guests: Some(memory_use(&usage.memory, usage.saved_part)),
            processes: usage.processes,
            merging: Some(v1::MemoryMerging {
                setting: self.density.setting_name().to_owned(),
                running: merging.running,
                reason: merging.reason,
                scanner_seconds: merging.scanner_seconds.unwrap_or_default(),
                scanner_percent: merging.scanner_part * 100.0,
            }),
        })
    }

    fn pids(&self) -> Vec<u32> {
        let all = self.vms.all().into_iter();
        all.map(|(_, handle)| handle.pid())
            .filter(|pid| *pid != 0)
            .collect()
    }
}

/// Watches the host's memory and has pages merged, until the node ends; then the host's settings are as they were found.
pub async fn run(node: Arc<Node>) {
    let trigger = match Trigger::open(Path::new(pressure::PSI)) {
        Ok(trigger) => Some(trigger),
        Err(error) => {
            tracing::info!(%error, "the kernel does not say when memory is waited for; it is looked at every second");
            None
        }
    };
    let begun = Instant::now();
    let mut judge = Judge::new(node.density.bounds);
    let mut merger = Merger::new(&node, begun);
    let mut merge_at = begun;
    loop {
        look(&node, &mut judge, begun);
        let pids = node.pids().into_iter().collect::<BTreeSet<_>>();
        node.vms
            .engine()
            .priorities
            .settle(&pids, nice_here(pids.len()));
        if merge_at <= Instant::now() {
            merger = merger.step(&node).await;
            merge_at = Instant::now() + MERGING_TICK;
        }
        let woken = async {
            match &trigger {
                Some(trigger) => {
                    sleep(QUIET).await;
                    if let Err(error) = trigger.wait().await {
                        tracing::warn!(%error, "waiting for memory pressure failed");
                        sleep(TICK).await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = node.cancel.cancelled() => break,
            () = woken => {}
            () = sleep_until(Instant::now() + TICK) => {}
        }
    }
    if let Some(driver) = &mut merger.driver
        && let Err(error) = driver.end()
    {
        tracing::warn!(%error, "the host's settings for merging memory could not be put back; the next agent does it");
    }
}

fn look(node: &Node, judge: &mut Judge, begun: Instant) {
    let seen = match pressure::look() {
        Ok(seen) => seen,
        Err(error) => {
            tracing::warn!(%error, "the host's memory cannot be looked at");
            return;
        }
    };
    let now = judge.judge(seen, begun.elapsed());
    let before = node.density.pressure.send_replace(now);
    if before.level != now.level {
        tracing::warn!(
            level = ?now.level,
            available_mib = now.available >> 20,
            waiting = now.some,
            "memory pressure has changed"
        );
        node.pool.look_again();
    }
}

/// Has pages merged as the node's setting says.
#[derive(Debug)]
struct Merger {
    driver: Option<Driver>,
    rule: Rule,
    rate: Rate,
    cpu: usage::Idle,
    begun: Instant,
    last: Option<(Instant, f64)>,
}

impl Merger {
    fn new(node: &Node, begun: Instant) -> Self {
        let density = &node.density;
        let wanted = density.setting != MergeMemory::Off && density.can_merge.is_ok();
        let ksm = Ksm::of_host().filter(|_| wanted);
        let host_boot = node.vms.engine().host_boot.clone();
        Self {
            driver: ksm.map(|ksm| Driver::new(ksm, ksm::LEASE.into(), host_boot)),
            rule: Rule::default(),
            rate: Rate::default(),
            cpu: usage::Idle::default(),
            begun,
            last: None,
        }
    }

    /// One look, and what follows from it. Reads a file or two of each process, so it is done beside the runtime's threads.
    async fn step(mut self, node: &Node) -> Self {
        let density = &node.density;
        let result = if self.driver.is_some() {
            let pids = node.pids();
            let (setting, pressure) = (density.setting, *density.pressure.borrow());
            let stepped = spawn_blocking(move || {
                let result = self.merge(setting, pressure, &pids);
                (self, result)
            });
            match stepped.await {
                Ok((merger, result)) => {
                    self = merger;
                    result
                }
                Err(panic) => {
                    tracing::error!(%panic, "merging memory has ended");
                    return Self::ended(node);
                }
            }
        } else {
            Ok(Merging {
                reason: match (&density.can_merge, density.setting) {
                    (_, MergeMemory::Off) => "it is turned off".to_owned(),
                    (Err(why), _) => why.clone(),
                    (Ok(()), _) => "this kernel cannot merge memory".to_owned(),
                },
                ..Merging::default()
            })
        };
        let report = result.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "memory cannot be merged as it should be");
            Merging {
                reason: error.to_string(),
                ..Merging::default()
            }
        });
        *density
            .merging
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = report;
        self
    }

    fn ended(node: &Node) -> Self {
        Self {
            driver: None,
            ..Self::new(node, Instant::now())
        }
    }

    fn merge(
        &mut self,
        setting: MergeMemory,
        pressure: Pressure,
        pids: &[u32],
    ) -> std::io::Result<Merging> {
        let scanner_seconds = ksm::scanner_seconds()?;
        let now = Instant::now();
        let usage = Usage::of(pids)?;
        let scanner_part = match (self.last, scanner_seconds) {
            (Some((then, before)), Some(seconds)) if now > then => {
                (seconds - before) / (now - then).as_secs_f64()
            }
            _ => 0.0,
        };
        self.last = scanner_seconds.map(|seconds| (now, seconds));
        let verdict = match setting {
            MergeMemory::Auto => {
                let profit = memory_use(&usage.memory, usage.saved_part).merge_profit_bytes;
                self.rule.judge(Sight {
                    at: now - self.begun,
                    available: pressure.available,
                    total: pressure.total,
                    idle: self.cpu.count(pids, now)?,
                    profit,
                    scanner_seconds,
                })
            }
            MergeMemory::On | MergeMemory::Off => Verdict {
                run: setting == MergeMemory::On,
                reason: "the agent's setting".to_owned(),
            },
        };
        let Some(driver) = &mut self.driver else {
            return Ok(Merging::default());
        };
        let pace = if verdict.run {
            let pages = (usage.memory.private + usage.memory.merged) / PAGE as u64;
            Pace::Steady {
                pages: self.rate.next(pages, scanner_part),
                sleep_ms: SLEEP_MS,
            }
        } else {
            Pace::Stopped
        };
        let reason = match driver.drive(pace)? {
            Outcome::Done => verdict.reason,
            Outcome::AnotherAgent => "another agent of this host decides".to_owned(),
            Outcome::SomebodyElse => "somebody else has set it for this host".to_owned(),
        };
        Ok(Merging {
            running: Ksm::of_host().map_or(Ok(false), |ksm| ksm.is_running())?,
            reason,
            scanner_seconds,
            scanner_part,
        })
    }
}
