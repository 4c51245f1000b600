//! Arguments of the commands that work inside VMs.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use super::label;

/// Help of `exec`.
pub const EXEC_EXAMPLES: &str = "\
Examples:
  fpagent exec demo -- uname -a
  fpagent exec demo -it -- sh
  echo 'select 1' | fpagent exec demo -i -- psql
  fpagent exec demo --env LANG=C --cwd /srv --user www-data --timeout 30s -- ./check

Ends with the program's own exit code; 128 and the signal's number when a signal ended it, 124 when --timeout did, 127 when it
could not be started. The program is ended when this command is.";

/// Help of `forward`.
pub const FORWARD_EXAMPLES: &str = "\
Examples:
  fpagent forward demo 8080:80
  fpagent forward demo 0:22 0.0.0.0:5432:5432

Listens on 127.0.0.1 unless another address is given; 0 chooses a free port. Works without a network in the VM.";

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The VM's name or id.
    pub vm: String,
    /// Give the program this command's input.
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the program a terminal.
    #[arg(long = "tty", short = 't')]
    pub terminal: bool,
    /// A setting in its environment, NAME=VALUE; can be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    pub env: Vec<(String, String)>,
    /// Its working directory. Without it its user's own.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Name or number of the user that it runs as.
    #[arg(long, short, default_value = "root")]
    pub user: String,
    /// The program and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Arguments of `forward`.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// The VM's name or id.
    pub vm: String,
    /// [ADDRESS:]LOCAL:GUEST, TCP ports; several can be given.
    #[arg(required = true, value_name = "LOCAL:GUEST", value_parser = port_pair)]
    pub ports: Vec<PortPair>,
}

/// A port here and the guest's that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPair {
    /// ADDRESS:PORT.
    pub local: String,
    /// The guest's.
    pub guest: u16,
}

fn port_pair(text: &str) -> Result<PortPair, String> {
    let wrong = || format!("{text:?} is not [ADDRESS:]LOCAL:GUEST");
    let (local, guest) = text.rsplit_once(':').ok_or_else(wrong)?;
    let guest: u16 = guest.parse().map_err(|_| wrong())?;
    if guest == 0 {
        return Err("the guest's port must be 1 to 65535".to_owned());
    }
    let local = match local.rsplit_once(':') {
        None => format!("127.0.0.1:{local}"),
        Some(_) => local.to_owned(),
    };
    let port = local.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(PortPair { local, guest }),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_ports_are_read() {
        let pair = |local: &str, guest| {
            Ok(PortPair {
                local: local.to_owned(),
                guest,
            })
        };
        assert_eq!(port_pair("8080:80"), pair("127.0.0.1:8080", 80));
        assert_eq!(port_pair("0:22"), pair("127.0.0.1:0", 22));
        assert_eq!(port_pair("0.0.0.0:1:2"), pair("0.0.0.0:1", 2));
        assert_eq!(port_pair("[::1]:1:2"), pair("[::1]:1", 2));
        for text in ["80", "a:80", "80:0", "80:70000", "80:", ":80"] {
            assert!(port_pair(text).is_err(), "{text}");
        }
    }
}
