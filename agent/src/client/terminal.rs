//! This program's own input, and its terminal where it has one.

use std::{
    io::{self, Read as _},
    thread,
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Pieces of input that are read ahead of the guest.
const INPUTS_AHEAD: usize = 4;
/// Input that is read at once, bytes.
const INPUT: usize = 16 << 10;

/// What is typed, or comes through a pipe, until its end. Begins to read at once.
pub fn input() -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (typed, keys) = mpsc::channel(INPUTS_AHEAD);
    // Not waited for at the end: nothing ends a read of a terminal but a key.
    thread::spawn(move || read_input(&typed));
    keys
}

/// Reads input until its end, or until nobody wants it.
fn read_input(typed: &mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut buffer = vec![0; INPUT];
    loop {
        let read = match io::stdin().lock().read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(buffer[..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        if typed.blocking_send(read).is_err() || failed {
            return;
        }
    }
}

/// How large the terminal is: lines, and characters in a line; 24 and 80 where nobody knows.
pub fn size() -> (u32, u32) {
    match tcgetwinsize(io::stdin()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            (u32::from(size.ws_row), u32::from(size.ws_col))
        }
        _ => (24, 80),
    }
}

/// A terminal that passes every key on, until it is dropped.
pub struct Raw(Termios);

impl Raw {
    /// Has it do so.
    pub fn enter() -> io::Result<Self> {
        let found = tcgetattr(io::stdin())?;
        let mut raw = found.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(found))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.0) {
            eprintln!("the terminal is not as it was ({error}): run `stty sane`");
        }
    }
}
