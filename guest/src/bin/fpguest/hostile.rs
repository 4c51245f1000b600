//! `fpguest hostile`: a guest whose agent lies to its host, for tests of the host. Once it is greeted it does what its kind is, and
//! goes on with that for as long as anybody reads.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fp_guest::channel::PORT;
use fp_guest::channel::frame::{DELIMITER, Decoder, Frame, Kind, stuffed};
use fp_guest::channel::message::{Hello, Identity, NEWEST, Welcome};
use fp_guest::channel::mux::WINDOW;
use prost::Message as _;

use crate::ports;

/// While nobody is at the other end, reading returns at once with nothing.
const NOBODY: Duration = Duration::from_millis(20);
/// What is written at once.
const PIECE: usize = 32 << 10;
/// How many tiny frames there are.
const TINY_FRAMES: u32 = 10_000_000;
/// And how many of them go out at once.
const TINY_AT_ONCE: u32 = 1000;

/// Does it until the port is gone.
///
/// # Errors
/// There is no such port, or the kernel refused.
pub fn run(kind: &str) -> io::Result<()> {
    let path = ports::find(Path::new(ports::FOLDER), PORT)?;
    let mut guest = Guest {
        port: OpenOptions::new().read(true).write(true).open(path)?,
        decoder: Decoder::default(),
        session: 0,
    };
    loop {
        let frame = guest.next()?;
        let Ok(hello) = Hello::decode(frame.payload) else {
            continue;
        };
        let Identity {
            incarnation, name, ..
        } = hello.identity.unwrap_or_default();
        guest.session = frame.session;
        let kind = if kind == "name" { &name } else { kind };
        guest.lie(kind, incarnation)?;
    }
}

struct Guest {
    port: File,
    decoder: Decoder,
    session: u64,
}

impl Guest {
    fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(next) = self.decoder.next_frame() {
                // What was cut off by a fork is no frame.
                let Ok(frame) = next else { continue };
                return Ok(frame);
            }
            let mut buffer = [0; 4096];
            match self.port.read(&mut buffer)? {
                0 => thread::sleep(NOBODY),
                count => self.decoder.push(&buffer[..count]),
            }
        }
    }

    /// The stream that the host begins next.
    fn next_stream(&mut self) -> io::Result<u32> {
        loop {
            let frame = self.next()?;
            if frame.kind == Kind::Open {
                return Ok(frame.stream);
            }
        }
    }

    fn lie(&mut self, kind: &str, incarnation: String) -> io::Result<()> {
        let honest = Welcome {
            version: NEWEST,
            incarnation,
            settled: true,
            ..Welcome::default()
        };
        match kind {
            // It is no liar; whoever greeted greets again.
            "honest" => return Err(Command::new("/proc/self/exe").arg("agent").exec()),
            "rubbish" => return self.rubbish(),
            "zeros" => return self.for_ever(&[DELIMITER; PIECE]),
            "version" => {
                return self.welcome(Welcome {
                    version: 99,
                    ..honest
                });
            }
            "another" => {
                return self.welcome(Welcome {
                    incarnation: "01ARZ3NDEKTSV4RRFFQ69G5FAV.1".to_owned(),
                    ..honest
                });
            }
            "deaf" | "length" | "endless" | "tiny" | "overrun" | "opens" | "credits"
            | "foreign" => self.welcome(honest)?,
            // It is silent.
            _ => return Ok(()),
        }
        match kind {
            "length" => self.lengths(),
            "endless" => self.for_ever(&[1; PIECE]),
            "tiny" => self.tiny(),
            "overrun" => {
                let stream = self.next_stream()?;
                // Input of the program is what the host sends, and never reads.
                for _ in 0..=WINDOW as usize / PIECE {
                    self.send(stream, Kind::Data, 0, &[7; PIECE])?;
                }
                Ok(())
            }
            "opens" => self.opens(),
            "credits" => {
                let stream = self.next_stream()?;
                self.send(stream, Kind::Credit, 0, &u32::MAX.to_le_bytes())
            }
            "foreign" => self.send(7777, Kind::Data, 1, b"of nobody"),
            // It has stopped to read.
            _ => loop {
                thread::park();
            },
        }
    }

    fn frame(&self, stream: u32, kind: Kind, lane: u8, payload: &[u8]) -> io::Result<BytesMut> {
        let frame = Frame {
            session: self.session,
            stream,
            kind,
            lane,
            payload: Bytes::copy_from_slice(payload),
        };
        let mut out = BytesMut::new();
        frame.encode(&mut out).map_err(io::Error::other)?;
        Ok(out)
    }

    fn send(&mut self, stream: u32, kind: Kind, lane: u8, payload: &[u8]) -> io::Result<()> {
        let frame = self.frame(stream, kind, lane, payload)?;
        self.port.write_all(&frame)
    }

    fn welcome(&mut self, welcome: Welcome) -> io::Result<()> {
        self.send(0, Kind::Welcome, 0, &welcome.encode_to_vec())
    }

    fn for_ever(&mut self, bytes: &[u8]) -> io::Result<()> {
        loop {
            self.port.write_all(bytes)?;
        }
    }

    /// Any bytes, with delimiters as often as any other.
    fn rubbish(&mut self) -> io::Result<()> {
        let mut state = self.session | 1;
        loop {
            let piece: Vec<u8> = (0..PIECE)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            self.port.write_all(&piece)?;
        }
    }

    /// Frames with another length than they say.
    fn lengths(&mut self) -> io::Result<()> {
        let mut body = self.session.to_le_bytes().to_vec();
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(&u32::MAX.to_le_bytes());
        body.extend_from_slice(&[Kind::Data as u8, 1]);
        let mut frame = stuffed(&body).to_vec();
        frame.push(DELIMITER);
        self.for_ever(&frame.repeat(100))
    }

    fn tiny(&mut self) -> io::Result<()> {
        let note = self.frame(0, Kind::Note, 0, b"")?;
        let many = note.repeat(TINY_AT_ONCE as usize);
        for _ in 0..TINY_FRAMES / TINY_AT_ONCE {
            self.port.write_all(&many)?;
        }
        Ok(())
    }

    /// Streams without end, and no answer to them is ever read.
    fn opens(&mut self) -> io::Result<()> {
        for stream in (2..u32::MAX).step_by(2) {
            self.send(stream, Kind::Open, 0, b"")?;
        }
        Ok(())
    }
}
