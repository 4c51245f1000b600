//! The watchdog: the process `fpagent watchdog`. It stops the VMs that it was given when the moment until which they may run has passed,
//! whatever has become of the agent. It decides nothing else, opens nothing, and has neither keys nor network.
//!
//! They are stopped by a signal to QEMU (`SIGSTOP`), which needs no answer from it, and lets them go on where they were if nothing has
//! become of them meanwhile. The moment is one of `CLOCK_BOOTTIME`, which counts while the host sleeps.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use qemu::{
    process::{Held, ProcessId},
    sys::spawn::given_listener,
};
use rustix::{
    process::Signal,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::{
    boottime,
    wire::{Answer, Order, read},
};
use crate::beside::line;

/// Between two looks whether anything is left to do.
const PAUSE: Duration = Duration::from_secs(1);
/// The kernel never ends it for want of memory: see `proc_pid_oom_score_adj(5)`.
const OOM_NEVER: &str = "-1000";
/// It comes before all that its host does besides: see `setpriority(2)`.
const PRIORITY: i32 = -20;

/// A VM's process. One that gives way to another is there for a moment beside it.
struct Watched {
    vm: String,
    process: Held,
    is_stopped: bool,
}

#[derive(Default)]
struct State {
    /// Until when they may run.
    until: u64,
    all: Vec<Watched>,
    /// Whether an agent is there.
    is_led: bool,
    /// Whether it ends.
    is_over: bool,
}

struct Shared {
    state: Mutex<State>,
    timer: OwnedFd,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the timer ring at the moment until which they may run.
    fn set_timer(&self, until: u64) -> io::Result<()> {
        let at = Timespec {
            tv_sec: i64::try_from(until / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(until % 1_000_000_000).unwrap_or(0),
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: at,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

impl State {
    /// Stops those that run, if they may not any more.
    fn look(&mut self) {
        self.all.retain(|watched| watched.process.is_alive());
        if boottime() >= self.until {
            self.stop(|_| true);
        }
    }

    fn stop(&mut self, which: impl Fn(&Watched) -> bool) {
        let all = self.all.iter_mut();
        for watched in all.filter(|one| !one.is_stopped && which(one)) {
            let vm = &watched.vm;
            match watched.process.signal(Signal::STOP) {
                Ok(()) => {
                    eprintln!("VM {vm} was stopped: this host may be taken for lost");
                    watched.is_stopped = true;
                }
                Err(error) => eprintln!("VM {vm} cannot be stopped: {error}"),
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<Option<u64>, String> {
        // Whatever comes late must find what has become of them.
        self.look();
        match order {
            Order::Until { at } => {
                self.until = self.until.max(at);
                return Ok(Some(self.until));
            }
            Order::Watch {
                vm,
                process,
                known_until,
            } => self.watch(vm, process, known_until)?,
            Order::Forget { vm } => {
                self.all.retain(|one| one.vm != vm || one.is_stopped);
            }
            Order::GoOn { vm, known_until } => {
                check_time(known_until)?;
                self.signal(&vm, Signal::CONT)?;
                let its = self.all.iter_mut().filter(|one| one.vm == vm);
                its.for_each(|one| one.is_stopped = false);
            }
            Order::End { vm } => self.signal(&vm, Signal::KILL)?,
        }
        Ok(None)
    }

    fn watch(&mut self, vm: String, process: ProcessId, known_until: u64) -> Result<(), String> {
        if self.all.iter().any(|one| one.vm == vm && one.is_stopped) {
            return Err("it was stopped, and what becomes of it is not known yet".into());
        }
        let is_known = |one: &Watched| one.vm == vm && one.process.id() == process;
        if self.all.iter().any(is_known) {
            return Ok(());
        }
        let held = Held::open(process).map_err(|error| format!("it cannot be held: {error}"))?;
        let held = held.ok_or("it has ended")?;
        self.all.push(Watched {
            vm,
            process: held,
            is_stopped: false,
        });
        check_time(known_until).inspect_err(|_| self.stop(|one| one.process.id() == process))
    }

    fn signal(&self, vm: &str, signal: Signal) -> Result<(), String> {
        for watched in self.all.iter().filter(|one| one.vm == vm) {
            let sent = watched.process.signal(signal);
            sent.map_err(|error| format!("it cannot be sent a signal: {error}"))?;
        }
        Ok(())
    }

    fn answer(&self, problem: String) -> Answer {
        let mut vms = BTreeMap::new();
        for one in &self.all {
            *vms.entry(one.vm.clone()).or_default() |= one.is_stopped;
        }
        Answer { problem, vms }
    }
}

fn check_time(until: u64) -> Result<(), String> {
    match boottime() < until {
        true => Ok(()),
        false => Err("no leader has heard of this host lately: it may be taken for lost".into()),
    }
}

/// Watches until no VM is left and no agent is there. The agent gave us a listening socket.
pub fn run() -> anyhow::Result<()> {
    if let Err(error) = rustix::process::setpriority_process(None, PRIORITY) {
        eprintln!("it has to wait for others: {error}");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_NEVER) {
        eprintln!("the kernel may end it when memory is short: {error}");
    }
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC);
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        timer: timer.context("there is no timer")?,
    });
    // The agent that started us connects first.
    shared.state().is_led = true;
    let listener = given_listener().context("no listening socket was given")?;
    let agents = Arc::clone(&shared);
    thread::spawn(move || {
        // One after the other: a host has one.
        for agent in listener.incoming() {
            let talked = agent.and_then(|agent| talk(&agents, agent));
            if let Err(error) = talked {
                eprintln!("an agent cannot be heard: {error}");
            }
            agents.state().is_led = false;
        }
    });
    let clock = Arc::clone(&shared);
    thread::spawn(move || {
        let mut rings = [0; 8];
        loop {
            // Returns when the timer has rung.
            match rustix::io::read(&clock.timer, &mut rings) {
                Ok(_) => clock.state().look(),
                Err(error) => eprintln!("the timer cannot be read: {error}"),
            }
        }
    });
    loop {
        thread::sleep(PAUSE);
        let mut state = shared.state();
        state.look();
        if state.all.is_empty() && !state.is_led {
            // Who connects now is not answered, and starts another.
            state.is_over = true;
            return Ok(());
        }
    }
}

/// Obeys one agent until it is gone.
fn talk(shared: &Shared, agent: UnixStream) -> io::Result<()> {
    let mut writer = agent.try_clone()?;
    {
        let mut state = shared.state();
        if state.is_over {
            return Ok(());
        }
        state.is_led = true;
    }
    for said in BufReader::new(agent).lines() {
        let order = read(&said?)?;
        let answer = {
            let mut state = shared.state();
            let problem = match state.obey(order) {
                Ok(Some(until)) => {
                    shared.set_timer(until)?;
                    String::new()
                }
                Ok(None) => String::new(),
                Err(problem) => problem,
            };
            state.answer(problem)
        };
        // Nobody waits for an agent that does not read: others hold no lock meanwhile.
        writer.write_all(&line(&answer)?)?;
    }
    Ok(())
}
