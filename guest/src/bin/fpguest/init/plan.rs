//! What the first process does next. Pure: processes and times come in, what to do goes out. Called by the loop in `init`.

use std::time::Duration;

/// A process, as the kernel names it.
pub type Process = rustix::process::Pid;

/// The wait after the first end of a service that did not run long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Who ran so long is started as at first.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// What is kept running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `fpguest agent`
    Agent,
    /// The login shell on the console.
    Shell,
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Start a service, and say how that went.
    Start(Service),
    /// Wait for a signal, as long as this or, with none, as long as it takes.
    Wait(Option<Duration>),
}

/// How a machine ends in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is switched off.
    PowerOff,
    /// It stands still.
    Halt,
    /// It begins anew.
    Reboot,
}

/// What a signal asks for. They are those of busybox's `poweroff`, `halt` and `reboot`, and the kernel's for ctrl-alt-del.
pub fn ending(signal: i32) -> Option<Ending> {
    match signal {
        libc::SIGUSR2 => Some(Ending::PowerOff),
        libc::SIGUSR1 => Some(Ending::Halt),
        libc::SIGTERM | libc::SIGINT => Some(Ending::Reboot),
        _ => None,
    }
}

/// What runs and what is to run. Times are since the plan was made.
#[derive(Debug)]
pub struct Plan {
    /// The script that comes before the shell, until it has ended.
    rc: Option<Process>,
    /// Nothing where it is not to run.
    agent: Option<Respawn>,
    shell: Respawn,
}

impl Plan {
    /// With the script's process, where it could be started, and whether the agent is to run.
    pub fn new(rc: Option<Process>, agent: bool) -> Self {
        Self {
            rc,
            agent: agent.then(Respawn::new),
            shell: Respawn::new(),
        }
    }

    /// What is to be done now.
    pub fn next(&self, now: Duration) -> Next {
        let mut pause: Option<Duration> = None;
        // The agent waits for its port by itself, and the script for the agent.
        let agent = self.agent.iter().map(|agent| (Service::Agent, agent));
        let shell = Some((Service::Shell, &self.shell)).filter(|_| self.rc.is_none());
        for (service, respawn) in agent.chain(shell) {
            match respawn.due(now) {
                Some(Duration::ZERO) => return Next::Start(service),
                Some(left) => pause = Some(pause.map_or(left, |other| other.min(left))),
                None => {}
            }
        }
        Next::Wait(pause)
    }

    /// A service was started, or with no process could not be.
    pub fn started(&mut self, service: Service, process: Option<Process>, now: Duration) {
        let respawn = match service {
            Service::Agent => self.agent.as_mut(),
            Service::Shell => Some(&mut self.shell),
        };
        if let Some(respawn) = respawn {
            respawn.started(process, now);
        }
    }

    /// A process ended; most of them are none of those here.
    pub fn ended(&mut self, process: Process, now: Duration) {
        if self.rc == Some(process) {
            self.rc = None;
        }
        for respawn in self.agent.iter_mut().chain([&mut self.shell]) {
            respawn.ended(process, now);
        }
    }

    /// The shell's process, if it runs.
    pub fn shell(&self) -> Option<Process> {
        match self.shell.state {
            State::Runs { process, .. } => Some(process),
            State::Due { .. } => None,
        }
    }
}

/// One service: whether it runs, when it is started again.
#[derive(Debug)]
struct Respawn {
    state: State,
    /// The wait after its next end.
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Due { at: Duration },
    Runs { process: Process, since: Duration },
}

impl Respawn {
    fn new() -> Self {
        let state = State::Due { at: Duration::ZERO };
        Self {
            state,
            pause: FIRST_PAUSE,
        }
    }

    /// How long until it is to be started; nothing while it runs.
    fn due(&self, now: Duration) -> Option<Duration> {
        match self.state {
            State::Due { at } => Some(at.saturating_sub(now)),
            State::Runs { .. } => None,
        }
    }

    fn started(&mut self, process: Option<Process>, now: Duration) {
        match process {
            Some(process) => {
                self.state = State::Runs {
                    process,
                    since: now,
                }
            }
            None => self.wait(now),
        }
    }

    fn ended(&mut self, ended: Process, now: Duration) {
        if let State::Runs { process, since } = self.state
            && process == ended
        {
            if now.saturating_sub(since) >= GOOD_RUN {
                self.pause = FIRST_PAUSE;
            }
            self.wait(now);
        }
    }

    fn wait(&mut self, now: Duration) {
        let at = now.saturating_add(self.pause);
        self.state = State::Due { at };
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn process(id: i32) -> Process {
        Process::from_raw(id).unwrap()
    }

    /// A plan whose script has ended and whose services run since 0, the agent as 2 and the shell as 3.
    fn running() -> Plan {
        let mut plan = Plan::new(None, true);
        plan.started(Service::Agent, Some(process(2)), ms(0));
        plan.started(Service::Shell, Some(process(3)), ms(0));
        plan
    }

    #[test]
    fn the_shell_is_not_started_before_the_script_has_ended() {
        let mut plan = Plan::new(Some(process(5)), true);
        assert_eq!(plan.next(ms(1)), Next::Start(Service::Agent));
        plan.started(Service::Agent, Some(process(7)), ms(1));
        assert_eq!(plan.next(ms(1)), Next::Wait(None));
        plan.ended(process(6), ms(2));
        assert_eq!(plan.next(ms(2)), Next::Wait(None));
        plan.ended(process(5), ms(3));
        assert_eq!(plan.next(ms(4)), Next::Start(Service::Shell));
        assert_eq!(plan.shell(), None);
        plan.started(Service::Shell, Some(process(8)), ms(5));
        assert_eq!(plan.shell(), Some(process(8)));
        // While all is well nobody wakes an idle guest.
        assert_eq!(plan.next(ms(5)), Next::Wait(None));
    }

    #[test]
    fn a_script_that_cannot_be_started_keeps_nothing_back() {
        let plan = Plan::new(None, true);
        assert_eq!(plan.next(ms(0)), Next::Start(Service::Agent));
    }

    #[test]
    fn an_agent_that_is_not_to_run_is_not_started() {
        let mut plan = Plan::new(None, false);
        assert_eq!(plan.next(ms(0)), Next::Start(Service::Shell));
        plan.started(Service::Shell, Some(process(3)), ms(0));
        assert_eq!(plan.next(ms(0)), Next::Wait(None));
    }

    #[test]
    fn one_that_keeps_ending_waits_longer_each_time_up_to_five_seconds() {
        let mut plan = running();
        let mut now = ms(1);
        for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            plan.ended(process(2), now);
            assert_eq!(plan.next(now), Next::Wait(Some(ms(pause))));
            assert_eq!(plan.next(now + ms(pause - 1)), Next::Wait(Some(ms(1))));
            now += ms(pause);
            assert_eq!(plan.next(now), Next::Start(Service::Agent));
            plan.started(Service::Agent, Some(process(2)), now);
        }
        // Ten seconds are a good run, less are not.
        now += ms(9_999);
        plan.ended(process(2), now);
        assert_eq!(plan.next(now), Next::Wait(Some(ms(5000))));
        plan.started(Service::Agent, Some(process(2)), now);
        plan.ended(process(2), now + ms(10_000));
        assert_eq!(plan.next(now + ms(10_000)), Next::Wait(Some(ms(100))));
    }

    #[test]
    fn one_that_cannot_be_started_waits_as_well() {
        let mut plan = running();
        plan.ended(process(3), ms(20_000));
        for (now, pause) in [(20_100, 200), (20_300, 400)] {
            assert_eq!(plan.next(ms(now)), Next::Start(Service::Shell));
            plan.started(Service::Shell, None, ms(now));
            assert_eq!(plan.next(ms(now)), Next::Wait(Some(ms(pause))));
        }
    }

    #[test]
    fn services_wait_each_for_themselves() {
        let mut plan = running();
        plan.ended(process(2), ms(1000));
        plan.started(Service::Agent, None, ms(1100));
        plan.ended(process(3), ms(1250));
        assert_eq!(plan.next(ms(1260)), Next::Wait(Some(ms(40))));
        assert_eq!(plan.next(ms(1300)), Next::Start(Service::Agent));
        plan.started(Service::Agent, Some(process(4)), ms(1300));
        assert_eq!(plan.next(ms(1300)), Next::Wait(Some(ms(50))));
        // An orphan that had a service's number before is nobody's.
        plan.ended(process(2), ms(1301));
        plan.ended(process(3), ms(1301));
        assert_eq!(plan.next(ms(1301)), Next::Wait(Some(ms(49))));
    }

    #[test]
    fn signals_are_those_of_busybox() {
        for (signal, expected) in [
            (libc::SIGUSR2, Some(Ending::PowerOff)),
            (libc::SIGUSR1, Some(Ending::Halt)),
            (libc::SIGTERM, Some(Ending::Reboot)),
            (libc::SIGINT, Some(Ending::Reboot)),
            (libc::SIGCHLD, None),
        ] {
            assert_eq!(ending(signal), expected);
        }
    }
}
