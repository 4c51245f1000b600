//! The host's settings for merging equal pages, as far as this agent may change them: one agent at a time does, and none
//! where somebody else has turned it on.

use std::{io, path::PathBuf};

use qemu::ksm::{Ksm, Lease, Pace, Settings};

/// Changes the host's settings, and puts them back.
#[derive(Debug)]
pub struct Driver {
    ksm: Ksm,
    lease_path: PathBuf,
    host_boot: String,
    mine: Option<Mine>,
    /// What was set last.
    pace: Option<Pace>,
    /// Somebody changed what we had set: until this agent's end it is theirs.
    yielded: bool,
}

/// What the one has who may change them.
#[derive(Debug)]
struct Mine {
    lease: Lease,
    found: Settings,
    /// What we have set; `None` before we have changed anything.
    set: Option<bool>,
}

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is as wished.
    Done,
    /// Another agent of this host decides.
    AnotherAgent,
    /// Somebody who is no agent decides.
    SomebodyElse,
}

impl Driver {
    /// One that has changed nothing.
    pub fn new(ksm: Ksm, lease_path: PathBuf, host_boot: String) -> Self {
        Self {
            ksm,
            lease_path,
            host_boot,
            mine: None,
            pace: None,
            yielded: false,
        }
    }

    /// Has the kernel look for equal pages at a pace, or not, if we may say so.
    pub fn drive(&mut self, pace: Pace) -> io::Result<Outcome> {
        let run = pace != Pace::Stopped;
        if self.yielded {
            return Ok(Outcome::SomebodyElse);
        }
        let running = self.ksm.is_running()?;
        let mine = match &mut self.mine {
            Some(mine) => mine,
            None => {
                let Some(mut lease) = Lease::take(&self.lease_path, &self.host_boot)? else {
                    return Ok(Outcome::AnotherAgent);
                };
                let (found, set) = match lease.found()? {
                    // An agent was killed before it could put them back. What it had set last is not known.
                    Some(found) => (found, Some(running)),
                    None => (self.ksm.settings()?, None),
                };
                self.mine.insert(Mine { lease, found, set })
            }
        };
        if running != mine.set.unwrap_or(false) {
            if mine.set.take().is_some() {
                // Nothing is put back: what is there now is what they want.
                mine.lease.clear()?;
                self.yielded = true;
            }
            return Ok(Outcome::SomebodyElse);
        }
        if run != running {
            if mine.set.is_none() {
                mine.found = self.ksm.settings()?;
            }
            mine.lease.keep(&mine.found)?;
            mine.set = Some(run);
        }
        if (run || running) && self.pace != Some(pace) {
            self.ksm.set_pace(pace)?;
            self.pace = Some(pace);
        }
        Ok(Outcome::Done)
    }

    /// Puts back what was found, if anything was changed, and lets another agent decide.
    pub fn end(&mut self) -> io::Result<()> {
        if let Some(mut mine) = self.mine.take()
            && mine.set.is_some()
        {
            self.ksm.restore(&mine.found)?;
            mine.lease.clear()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const RUN: Pace = Pace::Steady {
        pages: 100,
        sleep_ms: 20,
    };

    fn fake(dir: &Path) -> Ksm {
        for (name, value) in [
            ("run", "0"),
            ("advisor_mode", "[none] scan-time"),
            ("pages_to_scan", "100"),
            ("sleep_millisecs", "20"),
            ("smart_scan", "1"),
            ("use_zero_pages", "0"),
        ] {
            fs::write(dir.join(name), value).unwrap();
        }
        Ksm::at(dir).unwrap()
    }

    fn driver(dir: &Path, ksm: &Ksm) -> Driver {
        Driver::new(ksm.clone(), dir.join("lease"), "boot".into())
    }

    #[test]
    fn settings_are_changed_by_one_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let ksm = fake(dir.path());
        let found = ksm.settings().unwrap();
        let (mut one, mut other) = (driver(dir.path(), &ksm), driver(dir.path(), &ksm));
        assert_eq!(one.drive(RUN).unwrap(), Outcome::Done);
        assert!(ksm.is_running().unwrap());
        assert_eq!(other.drive(Pace::Stopped).unwrap(), Outcome::AnotherAgent);
        assert_eq!(one.drive(Pace::Stopped).unwrap(), Outcome::Done);
        assert!(!ksm.is_running().unwrap());
        assert_eq!(one.drive(RUN).unwrap(), Outcome::Done);
        one.end().unwrap();
        assert_eq!(ksm.settings().unwrap(), found);
        assert_eq!(other.drive(RUN).unwrap(), Outcome::Done);
        other.end().unwrap();
        assert_eq!(ksm.settings().unwrap(), found);
    }

    #[test]
    fn what_a_killed_agent_found_is_put_back_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let ksm = fake(dir.path());
        let found = ksm.settings().unwrap();
        let mut one = driver(dir.path(), &ksm);
        assert_eq!(one.drive(RUN).unwrap(), Outcome::Done);
        drop(one);
        assert_ne!(ksm.settings().unwrap(), found);
        let mut next = driver(dir.path(), &ksm);
        assert_eq!(next.drive(RUN).unwrap(), Outcome::Done);
        next.end().unwrap();
        assert_eq!(ksm.settings().unwrap(), found);
    }

    #[test]
    fn somebody_elses_choice_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ksm = fake(dir.path());
        fs::write(dir.path().join("run"), "1").unwrap();
        let found = ksm.settings().unwrap();
        let mut one = driver(dir.path(), &ksm);
        assert_eq!(one.drive(Pace::Stopped).unwrap(), Outcome::SomebodyElse);
        assert_eq!(one.drive(RUN).unwrap(), Outcome::SomebodyElse);
        one.end().unwrap();
        assert_eq!(ksm.settings().unwrap(), found);

        fs::write(dir.path().join("run"), "0").unwrap();
        assert_eq!(one.drive(RUN).unwrap(), Outcome::Done);
        // Turned off by hand.
        fs::write(dir.path().join("run"), "0").unwrap();
        assert_eq!(one.drive(RUN).unwrap(), Outcome::SomebodyElse);
        assert_eq!(one.drive(RUN).unwrap(), Outcome::SomebodyElse);
        one.end().unwrap();
        assert!(!ksm.is_running().unwrap());
    }
}
