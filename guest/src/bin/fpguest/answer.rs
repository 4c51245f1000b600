//! `fpguest answer`: says each line that it is given again. A guest that answers a line that nobody could foresee is alive.

use std::io::{self, BufRead, Write};

/// How long a line may be; the rest of a longer one is the next.
const LONGEST: u64 = 256;

/// Answers until the input ends.
///
/// # Errors
/// The input's or the output's.
pub fn run() -> io::Result<()> {
    let mut input = io::stdin().lock();
    loop {
        let mut line = Vec::new();
        if io::Read::take(&mut input, LONGEST).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let mut output = io::stdout().lock();
        output.write_all(b"answer: ")?;
        output.write_all(line.trim_ascii())?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
}
