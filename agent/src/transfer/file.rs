//! The files that nodes give each other: what they are called here and between nodes, and how one is known to be whole.

use std::{fs::File, io, path::PathBuf};

use proto::peer::{HeldFile, held_file};
use qemu::{
    checksum::{self, Checksum, Sparse},
    layout::{self, Layout},
};
use raft::state::{Content, FileId, Safety, VmId};
use sha2::{Digest as _, Sha256};

use crate::{
    blobs::hex,
    vms::launch::{base_name, layer_name, stream_name},
};

/// A file that never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileName {
    /// Memory that snapshots share.
    Base(FileId),
    /// A disk layer.
    Layer(FileId),
    /// A snapshot's stream.
    Stream(FileId),
    /// A file of an image, by the SHA-256 of its content.
    Image([u8; 32]),
}

/// By what a file that came is compared with what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nobody has summed it up yet: each part was compared when it came.
    Parts,
    /// The checksum of all that is in it, holes left out: see [`Sparse`].
    Sparse(Checksum),
    /// The checksum of all its bytes.
    Bytes(Checksum),
    /// Its own name.
    Name,
}

impl FileName {
    /// What another node calls it; `None` when that is no name.
    pub fn of(message: &HeldFile) -> Option<Self> {
        let id = |text: &str| text.parse::<VmId>().ok().map(|id| id.0);
        Some(match message.file.as_ref()? {
            held_file::File::Base(name) => Self::Base(id(name)?),
            held_file::File::Layer(name) => Self::Layer(id(name)?),
            held_file::File::Stream(name) => Self::Stream(id(name)?),
            held_file::File::Image(name) => Self::Image(unhex(name)?),
        })
    }

    /// For another node.
    pub fn message(self) -> HeldFile {
        let name = |id| VmId(id).to_string();
        HeldFile {
            file: Some(match self {
                Self::Base(id) => held_file::File::Base(name(id)),
                Self::Layer(id) => held_file::File::Layer(name(id)),
                Self::Stream(id) => held_file::File::Stream(name(id)),
                Self::Image(sha256) => held_file::File::Image(hex(&sha256)),
            }),
        }
    }

    /// What it is called while it is shown before it is whole.
    pub fn shown(self) -> String {
        let name = |id| VmId(id).to_string();
        match self {
            Self::Base(id) => format!("base-{}", name(id)),
            Self::Layer(id) => format!("layer-{}", name(id)),
            Self::Stream(id) => format!("stream-{}", name(id)),
            Self::Image(sha256) => format!("image-{}", hex(&sha256)),
        }
    }

    /// Of which file that is the name.
    pub fn of_shown(shown: &str) -> Option<Self> {
        let (kind, name) = shown.split_once('-')?;
        let id = || name.parse::<VmId>().ok().map(|id| id.0);
        match kind {
            "base" => id().map(Self::Base),
            "layer" => id().map(Self::Layer),
            "stream" => id().map(Self::Stream),
            "image" => unhex(name).map(Self::Image),
            _ => None,
        }
    }

    /// Its path below the data directory.
    pub fn relative(self) -> String {
        match self {
            Self::Base(id) => layout::base(&base_name(id)),
            Self::Layer(id) => layout::layer(&layer_name(id)),
            Self::Stream(id) => layout::stream(&stream_name(id)),
            Self::Image(sha256) => layout::image(&hex(&sha256)),
        }
    }

    /// Its path.
    pub fn path(self, layout: &Layout) -> PathBuf {
        layout.root().join(self.relative())
    }

    /// Where it is put together, below the data directory. No name of a whole file ends like this.
    pub fn relative_part(self) -> String {
        format!("{}.part", self.relative())
    }

    /// Where it is put together.
    pub fn part(self, layout: &Layout) -> PathBuf {
        layout.root().join(self.relative_part())
    }

    /// Whether a file is what it should be.
    pub fn is_whole(self, file: &File, expected: Expected) -> io::Result<bool> {
        match expected {
            Expected::Parts => Ok(true),
            Expected::Sparse(sum) => {
                let mut sparse = Sparse::begin(file.try_clone()?)?;
                loop {
                    if let Some(found) = sparse.step()? {
                        return Ok(found == sum);
                    }
                }
            }
            Expected::Bytes(sum) => Ok(checksum::of_open_file(file)? == sum),
            Expected::Name => {
                let mut hash = Sha256::new();
                let mut file = file.try_clone()?;
                io::Seek::rewind(&mut file)?;
                io::copy(&mut file, &mut hash)?;
                let found: [u8; 32] = hash.finalize().into();
                Ok(self == Self::Image(found))
            }
        }
    }
}

/// The files of a snapshot, and what each should be: layers from the image's up, then the base, then the stream, so that what
/// others may need first is there first.
pub fn of_snapshot(content: &Content) -> Vec<(FileName, Expected)> {
    let sums = match &content.safety {
        Safety::Memory => None,
        Safety::Disk(sums) => Some(sums),
    };
    let sum = |sum: Option<Checksum>| sum.map_or(Expected::Parts, Expected::Sparse);
    let layers = content.layers.iter().enumerate().map(|(place, layer)| {
        let known = sums.and_then(|sums| sums.layers.get(place).copied());
        (FileName::Layer(*layer), sum(known))
    });
    let base = (
        FileName::Base(content.base),
        sum(sums.map(|sums| sums.base)),
    );
    let stream = (
        FileName::Stream(content.stream),
        Expected::Bytes(content.stream_checksum),
    );
    layers.rev().chain([base, stream]).collect()
}

/// 32 bytes from lowercase hexadecimal.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let digits: Vec<u8> = text.bytes().map(digit).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    (digits.len() == 64)
        .then(|| bytes.try_into().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_to_another_node_and_back() {
        for name in [
            FileName::Base(7),
            FileName::Layer(u128::MAX >> 3),
            FileName::Stream(0),
            FileName::Image([0xa5; 32]),
        ] {
            assert_eq!(FileName::of(&name.message()), Some(name));
            assert_eq!(FileName::of_shown(&name.shown()), Some(name));
        }
    }

    #[test]
    fn what_is_no_name_is_no_path() {
        let of = |file| FileName::of(&HeldFile { file: Some(file) });
        for text in [
            "",
            "../vms",
            "01J8",
            &"g".repeat(64),
            &"ab".repeat(31),
            &"AB".repeat(32),
        ] {
            assert_eq!(of(held_file::File::Image(text.to_owned())), None, "{text}");
            assert_eq!(of(held_file::File::Base(text.to_owned())), None, "{text}");
        }
        assert_eq!(FileName::of(&HeldFile { file: None }), None);
    }
}
