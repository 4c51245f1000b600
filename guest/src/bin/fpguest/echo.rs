//! `fpguest echo`: what comes through a virtio serial port goes back at once, for whoever measures from outside when the
//! guest stands still.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Where the kernel lists the ports.
const PORTS: &str = "/sys/class/virtio-ports";
/// While nobody is at the other end, reading returns at once with nothing.
const NOBODY: Duration = Duration::from_millis(20);

/// Echoes until it fails.
///
/// # Errors
/// There is no such port, or the kernel refused.
pub fn run(name: &str) -> io::Result<()> {
    let path = find(Path::new(PORTS), name)?;
    let mut port = OpenOptions::new().read(true).write(true).open(path)?;
    loop {
        echo(&mut port)?;
        thread::sleep(NOBODY);
    }
}

/// Echoes until there is nobody at the other end.
fn echo(port: &mut File) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = port.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        port.write_all(&buffer[..count])?;
    }
}

/// The device of the port with this name.
fn find(ports: &Path, name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(ports)? {
        let entry = entry?;
        match fs::read_to_string(entry.path().join("name")) {
            Ok(found) if found.trim_end() == name => {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
            Ok(_) => {}
            // A console has no name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("there is no port {name:?}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "other\n"), ("vport1p2", "mine\n")] {
            fs::create_dir(folder.path().join(port)).unwrap();
            fs::write(folder.path().join(port).join("name"), name).unwrap();
        }
        fs::create_dir(folder.path().join("vport0p0")).unwrap();
        let found = find(folder.path(), "mine").unwrap();
        assert_eq!(found, Path::new("/dev/vport1p2"));
        let none = find(folder.path(), "yours").unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
