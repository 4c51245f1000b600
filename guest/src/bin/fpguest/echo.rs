//! `fpguest echo`: what comes through a virtio serial port goes back at once, for whoever measures from outside when the
//! guest stands still.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::ports;

/// While nobody is at the other end, reading returns at once with nothing.
const NOBODY: Duration = Duration::from_millis(20);

/// Echoes until it fails.
///
/// # Errors
/// There is no such port, or the kernel refused.
pub fn run(name: &str) -> io::Result<()> {
    let path = ports::find(Path::new(ports::FOLDER), name)?;
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
