//! `fpguest beat`: a mark at every beat, for whoever measures from outside when the guest stood still. Where many guests share a processor
//! it costs each of them next to nothing, and so shows when they were held, not when they waited for their turn.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

/// Prints until it fails. From one mark to the next it is never less than `interval` of the guest's time: who was late does not catch up.
///
/// # Errors
/// Nobody takes what is printed.
pub fn run(interval: Duration) -> io::Result<()> {
    loop {
        io::stdout().write_all(b".\n")?;
        thread::sleep(interval);
    }
}
