//! The one that has the files: [`send`].

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    path::PathBuf,
    sync::atomic::Ordering::Relaxed,
};

use bytes::BytesMut;

use super::{
    AHEAD, CHUNK, Content, CopyError, Ends, Have, Meter, Piece, PieceKind, Reply, Said, TreeEnd,
    Wanted,
    walk::{Source, Walk},
};

/// Where what is sent comes from.
pub enum From {
    /// A file, or a folder with all that is in it.
    Path(PathBuf),
    /// Whatever can be read here, as one file.
    Reader(Box<dyn Read + Send>),
}

/// A piece that was said and is not done with.
enum Ahead {
    File(Box<Offered>),
    /// Nothing more is to be done about it; it counts for what is ahead.
    Other,
}

struct Offered {
    /// For people.
    path: Vec<u8>,
    bytes: Option<u64>,
    content: Origin,
}

enum Origin {
    File(Source),
    Reader(Box<dyn Read + Send>),
}

/// Sends files. Returns once the receiver has all of them in their places.
///
/// A file is sent as exactly so many bytes as were said.
///
/// # Errors
/// The conversation broke; a file cannot be read, or became shorter. The receiver does not know that yet.
pub fn send(from: From, ends: &mut Ends<Said, Reply>, meter: &Meter) -> Result<(), CopyError> {
    let mut pieces = match from {
        From::Path(path) => Pieces::Tree(Walk::new(&path)?),
        From::Reader(reader) => Pieces::Reader(Some(reader)),
    };
    let mut ahead: VecDeque<Ahead> = VecDeque::new();
    let mut more = true;
    loop {
        while more && ahead.len() < AHEAD {
            match pieces.next()? {
                Some((piece, next)) => {
                    ends.say(Said::Piece(piece))?;
                    ahead.push_back(next);
                }
                None => more = false,
            }
            while let Some(Ahead::Other) = ahead.front() {
                ahead.pop_front();
            }
        }
        match ahead.pop_front() {
            Some(Ahead::File(offered)) => {
                let Reply::Wanted(wanted) = ends.hear()? else {
                    return Err(CopyError::unsound("it was done before all was there"));
                };
                give(*offered, wanted, ends, meter)?;
            }
            Some(Ahead::Other) => {}
            None if more => {}
            None => break,
        }
        while let Some(Ahead::Other) = ahead.front() {
            ahead.pop_front();
        }
    }
    let left_out = pieces.left_out();
    Meter::add(&meter.left_out, left_out);
    ends.say(Said::End(TreeEnd { left_out }))?;
    match ends.hear()? {
        Reply::Done(done) => {
            Meter::add(&meter.links_left_out, done.links_left_out);
            Ok(())
        }
        Reply::Wanted(_) => Err(CopyError::unsound("it wants more than there was")),
    }
}

enum Pieces {
    Tree(Walk),
    Reader(Option<Box<dyn Read + Send>>),
}

impl Pieces {
    fn next(&mut self) -> Result<Option<(Piece, Ahead)>, CopyError> {
        match self {
            Self::Tree(walk) => Ok(walk.next()?.map(|(piece, source)| {
                let ahead = match source {
                    Some(source) => Ahead::File(Box::new(Offered {
                        path: walk.shown(&piece.path),
                        bytes: piece.bytes,
                        content: Origin::File(source),
                    })),
                    None => Ahead::Other,
                };
                (piece, ahead)
            })),
            Self::Reader(reader) => Ok(reader.take().map(|reader| {
                let piece = Piece {
                    kind: PieceKind::File.into(),
                    mode: 0o644,
                    modified_ns: now_ns(),
                    ..Piece::default()
                };
                let offered = Offered {
                    path: b"standard input".to_vec(),
                    bytes: None,
                    content: Origin::Reader(reader),
                };
                (piece, Ahead::File(Box::new(offered)))
            })),
        }
    }

    fn left_out(&self) -> u64 {
        match self {
            Self::Tree(walk) => walk.left_out,
            Self::Reader(_) => 0,
        }
    }
}

fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

/// Sends what is wanted of a file.
fn give(
    offered: Offered,
    wanted: Wanted,
    ends: &mut Ends<Said, Reply>,
    meter: &Meter,
) -> Result<(), CopyError> {
    let Offered {
        path,
        bytes,
        content,
    } = offered;
    Meter::add(&meter.total, bytes.unwrap_or_default());
    if wanted.same {
        Meter::add(&meter.same, 1);
        Meter::add(&meter.spared, bytes.unwrap_or_default());
        return Ok(());
    }
    let failed = |error: io::Error| CopyError::io(&path, error);
    let mut offset = 0;
    let mut reader: Box<dyn Read> = match content {
        Origin::Reader(reader) => reader,
        Origin::File(source) => {
            let file = source.open().map_err(|error| failed(error.into()))?;
            let Some(mut file) = file else {
                Meter::add(&meter.gone, 1);
                return ends.say(Said::Content(Content {
                    offset: 0,
                    bytes: BytesMut::new().freeze(),
                    last: true,
                    gone: true,
                }));
            };
            if let (Some(have), Some(bytes)) = (wanted.have, bytes)
                && begins_so(&mut file, have, bytes).map_err(failed)?
            {
                offset = have.bytes;
            }
            file.seek(SeekFrom::Start(offset)).map_err(failed)?;
            Box::new(file)
        }
    };
    Meter::add(&meter.spared, offset);
    loop {
        let left = bytes.map_or(u64::MAX, |bytes| bytes.saturating_sub(offset));
        let mut chunk = BytesMut::zeroed(left.min(CHUNK as u64) as usize);
        let count = if left == 0 {
            0
        } else {
            read(&mut reader, &mut chunk).map_err(failed)?
        };
        chunk.truncate(count);
        if count == 0 && left > 0 && bytes.is_some() {
            return Err(CopyError::at(&path, "it became shorter while it was read"));
        }
        let last = count == 0 || count as u64 == left;
        let content = Content {
            offset,
            bytes: chunk.freeze(),
            last,
            gone: false,
        };
        ends.say(Said::Content(content))?;
        offset += count as u64;
        meter.bytes.fetch_add(count as u64, Relaxed);
        if last {
            Meter::add(&meter.files, 1);
            return Ok(());
        }
    }
}

fn read(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Whether a file begins as what the receiver has of it.
fn begins_so(file: &mut File, have: Have, bytes: u64) -> io::Result<bool> {
    Ok(have.bytes <= bytes && checksum(file, have.bytes)? == Some(have.crc32))
}

/// The CRC-32 of a file's first bytes; `None` when it has fewer.
pub(super) fn checksum(file: &mut File, bytes: u64) -> io::Result<Option<u32>> {
    file.rewind()?;
    let mut left = bytes;
    let mut buffer = vec![0; CHUNK];
    let mut crc = crc32fast::Hasher::new();
    while left > 0 {
        let most = left.min(buffer.len() as u64) as usize;
        match read(file, &mut buffer[..most])? {
            0 => return Ok(None),
            count => {
                crc.update(&buffer[..count]);
                left -= count as u64;
            }
        }
    }
    Ok(Some(crc.finalize()))
}
