//! Arguments about what guests are told, may do, and are waited for.

use clap::{Args, ValueEnum};
use proto::v1;
use std::path::PathBuf;

/// Help of `vm wait`.
pub const WAIT_EXAMPLES: &str = "\
Examples:
  fpagent vm wait demo --for running
  fpagent vm wait job --for exit --timeout 1h; echo \"it ended with $?\"

With --for exit it ends as the guest did: with the code of its `fpguest exit`, 0 when it was stopped or powered off, 1 when it
failed. After --timeout it ends with 124.";

/// Arguments of `vm wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Its name or id.
    pub vm: String,
    /// What to wait for: running, ready, exit, or port:80 for one that takes connections.
    #[arg(long = "for", value_name = "WHAT", value_parser = wait_for)]
    pub until: Wait,
}

/// What of a VM to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It runs.
    Running,
    /// Its guest answers and has become itself.
    Ready,
    /// It has ended.
    Exit,
    /// Something in it takes connections to a port.
    Port(u16),
}

fn wait_for(text: &str) -> Result<Wait, String> {
    match text {
        "running" => Ok(Wait::Running),
        "ready" => Ok(Wait::Ready),
        "exit" => Ok(Wait::Exit),
        _ => match text.strip_prefix("port:").map(str::parse) {
            Some(Ok(port)) if port != 0 => Ok(Wait::Port(port)),
            _ => Err("must be running, ready, exit or port:1 to port:65535".to_owned()),
        },
    }
}

impl Wait {
    /// The same for a request: what, and the port.
    pub fn message(self) -> (v1::WaitFor, u32) {
        match self {
            Self::Running => (v1::WaitFor::Running, 0),
            Self::Ready => (v1::WaitFor::Ready, 0),
            Self::Exit => (v1::WaitFor::Exit, 0),
            Self::Port(port) => (v1::WaitFor::Port, port.into()),
        }
    }
}

/// Arguments of `vm create` about its guest's network and rights.
#[derive(Debug, Args)]
pub struct GuestArgs {
    /// What network it has: one of its own, or none. So have its forks.
    #[arg(long, value_enum, default_value_t)]
    pub network: Network,
    /// Its guest, and those of its forks, cannot reach out.
    #[arg(long)]
    pub no_egress: bool,
    /// TCP ports of its guest that its node forwards to; those of its forks get ports of their own on the host.
    #[arg(long, value_name = "PORT", num_args = 1.., value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub publish: Vec<u16>,
    /// Lets its guest and those of its forks fork their own VMs, while no more than MAX that were made so live.
    #[arg(long, value_name = "MAX", default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub allow_self_fork: u32,
    /// What becomes of a fork of it of which a step of becoming itself failed.
    #[arg(long, value_enum, default_value_t)]
    pub unready: Unready,
}

impl GuestArgs {
    /// The network for a request.
    pub fn network(&self) -> v1::Network {
        v1::Network {
            kind: match self.network {
                Network::User => v1::NetworkKind::User,
                Network::None => v1::NetworkKind::None,
            }
            .into(),
            no_egress: self.no_egress,
        }
    }
}

/// What network a VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Network {
    /// One of its own.
    #[default]
    User,
    /// None.
    None,
}

/// What becomes of a fork that has not wholly become itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Unready {
    /// It runs.
    #[default]
    Run,
    /// It is paused.
    Hold,
}

impl From<Unready> for v1::Unready {
    fn from(unready: Unready) -> Self {
        match unready {
            Unready::Run => Self::Run,
            Unready::Hold => Self::Hold,
        }
    }
}

/// Which program an image's guests answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum GuestAgent {
    /// Ours, fpguest.
    #[default]
    Forkypig,
    /// QEMU's, qemu-ga.
    Qemu,
    /// None.
    None,
}

impl From<GuestAgent> for v1::GuestAgent {
    fn from(agent: GuestAgent) -> Self {
        match agent {
            GuestAgent::Forkypig => Self::Forkypig,
            GuestAgent::Qemu => Self::Qemu,
            GuestAgent::None => Self::None,
        }
    }
}

/// A secret as it is typed: its key, and where its value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArg {
    /// Its key.
    pub key: String,
    /// Where it is read.
    pub from: SecretFrom,
}

/// Where a secret is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFrom {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// It was typed. What it was is forgotten at once: no message shall repeat it.
    Typed,
}

/// Reads `KEY=@FILE` or `KEY=@-`. What is typed in another way is refused where no message quotes it.
pub fn secret(text: &str) -> Result<SecretArg, String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let from = match value.strip_prefix('@') {
        Some("-") => SecretFrom::Stdin,
        Some(path) if !path.is_empty() => SecretFrom::File(path.into()),
        _ => SecretFrom::Typed,
    };
    Ok(SecretArg {
        key: key.to_owned(),
        from,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for() {
        for (text, expected) in [
            ("running", Some(Wait::Running)),
            ("ready", Some(Wait::Ready)),
            ("exit", Some(Wait::Exit)),
            ("port:80", Some(Wait::Port(80))),
            ("port:0", None),
            ("port:65536", None),
            ("port", None),
            ("", None),
            ("Running", None),
        ] {
            assert_eq!(wait_for(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_typed_secret_is_forgotten() {
        let from = |text| secret(text).unwrap().from;
        assert_eq!(from("k=@/a/b"), SecretFrom::File("/a/b".into()));
        assert_eq!(from("k=@-"), SecretFrom::Stdin);
        for text in ["k=hunter2", "k=@", "k=", "k"] {
            let read = secret(text).unwrap();
            assert_eq!((read.key.as_str(), &read.from), ("k", &SecretFrom::Typed));
        }
    }
}
