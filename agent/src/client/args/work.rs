//! Arguments of the commands that work inside VMs.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use clap::Args;
use raft::state::names::is_valid as is_name;

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

/// Help of `cp`.
pub const CP_EXAMPLES: &str = "\
Examples:
  fpagent cp ./site demo:/srv/www
  fpagent cp demo:/var/log/app.log .
  tar c src | fpagent cp - demo:/tmp/src.tar
  fpagent cp demo:/etc/os-release - | grep NAME

Copies a file, or a folder with all that is in it: permissions, modification times and symbolic links are kept, owners are not. A
folder that is there gets SRC in it, under its own name; SRC/. is only what is in it. Files that are there are replaced, those with the
same size and time are left alone. A path in a VM is below root's home unless it begins with /. A file here whose name has a colon
is written ./a:b. OWNER/NAME:PATH is in the VM of another owner.

A copy that was interrupted goes on where it was when it is run again. Out of a VM come neither set-user-id bits nor links that
point out of the tree.";

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
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = label)]
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

/// Arguments of `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// What is copied: a path, VM:PATH, or - for this command's input.
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// Where to: a path, VM:PATH, or - for this command's output. One of the two is in a VM.
    #[arg(value_name = "DST")]
    pub destination: OsString,
}

/// A side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySide {
    /// This command's input or output.
    Standard,
    /// Here.
    Here(PathBuf),
    /// In a VM.
    In {
        /// Its name or id.
        vm: String,
        /// Where.
        path: Vec<u8>,
    },
}

impl CopySide {
    /// Reads one as it is typed: what has a colon before any slash is in a VM, and so is what begins with `OWNER/NAME:`.
    pub fn of(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Self::Standard;
        }
        let first = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
        let colon = bytes.iter().position(|byte| *byte == b':');
        match colon {
            Some(colon @ 1..) if first == Some(colon) || is_owned(&bytes[..colon]) => Self::In {
                vm: String::from_utf8_lossy(&bytes[..colon]).into_owned(),
                path: bytes[colon + 1..].to_vec(),
            },
            _ => Self::Here(text.into()),
        }
    }
}

/// Whether something is `OWNER/NAME`.
fn is_owned(text: &[u8]) -> bool {
    let text = std::str::from_utf8(text).ok();
    let parts = text.and_then(|text| text.split_once('/'));
    parts.is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

/// The name that what is at a path has there; empty for what `.` and `..` and the root are, of which only what is in them is meant.
pub fn name_at(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|byte| *byte != b'/');
    let path = &path[..end.map_or(0, |end| end + 1)];
    let name = path.rsplit(|byte| *byte == b'/').next();
    match name.unwrap_or_default() {
        b"." | b".." => Vec::new(),
        name => name.to_vec(),
    }
}

/// Arguments of `forward`.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// The VM's name or id.
    pub vm: String,
    /// TCP ports, LOCAL:GUEST or ADDRESS:LOCAL:GUEST; several can be given.
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
    let wrong = || format!("{text:?} is neither LOCAL:GUEST nor ADDRESS:LOCAL:GUEST");
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
    fn sides_of_a_copy_are_read() {
        let here = |path: &str| CopySide::Here(path.into());
        let vm = |vm: &str, path: &str| CopySide::In {
            vm: vm.to_owned(),
            path: path.into(),
        };
        for (text, side) in [
            ("-", CopySide::Standard),
            ("a", here("a")),
            ("./a:b", here("./a:b")),
            ("/a:b", here("/a:b")),
            (":a", here(":a")),
            ("v:", vm("v", "")),
            ("v:/a:b", vm("v", "/a:b")),
            ("ann/v:a", vm("ann/v", "a")),
            ("./ann/v:a", here("./ann/v:a")),
            ("a.d/v:a", here("a.d/v:a")),
            ("a/b/v:a", here("a/b/v:a")),
        ] {
            assert_eq!(CopySide::of(text.as_ref()), side, "{text}");
        }
        for (path, name) in [
            ("/a/b", "b"),
            ("b//", "b"),
            ("/", ""),
            ("", ""),
            ("a/.", ""),
            ("a/..", ""),
            ("..a", "..a"),
        ] {
            assert_eq!(name_at(path.as_bytes()), name.as_bytes(), "{path}");
        }
    }

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
