//! The content-addressed files of images: taken in, checked, and fetched from other nodes.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use qemu::layout::Layout;
use sha2::{Digest as _, Sha256};

/// A kernel is an x86 boot image (Documentation/arch/x86/boot.rst: "HdrS" at 0x202) or an ELF file.
const BZIMAGE_MAGIC: (u64, &[u8]) = (0x202, b"HdrS");
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// What an initial RAM file system begins with: cpio (newc, crc), gzip, xz, zstd, lz4, bzip2, lzma, lzo.
const INITRD_MAGICS: [&[u8]; 9] = [
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"\x02\x21\x4c\x18",
    b"BZh",
    b"\x5d\0\0",
    b"\x89LZO",
];

/// Lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ok = write!(text, "{byte:02x}");
        text
    })
}

/// A file that is being taken in. Removed again unless it is kept.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
    kept: bool,
}

/// A file that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// SHA-256 of its content.
    pub sha256: [u8; 32],
    /// Its size, bytes.
    pub bytes: u64,
}

impl Incoming {
    /// Begins one. `name` tells it from others that come at the same time.
    pub fn begin(layout: &Layout, name: &str) -> io::Result<Self> {
        let path = layout.images().join(format!("{name}.part"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        Ok(Self {
            path,
            file,
            hash: Sha256::new(),
            bytes: 0,
            kept: false,
        })
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Where its bytes are until it is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it begins like a kernel.
    pub fn is_kernel(&mut self) -> io::Result<bool> {
        let (place, magic) = BZIMAGE_MAGIC;
        Ok(self.has(place, magic)? || self.has(0, ELF_MAGIC)?)
    }

    /// Whether it begins like an initial RAM file system.
    pub fn is_initrd(&mut self) -> io::Result<bool> {
        for magic in INITRD_MAGICS {
            if self.has(0, magic)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn has(&mut self, place: u64, magic: &[u8]) -> io::Result<bool> {
        let mut found = vec![0; magic.len()];
        self.file.seek(SeekFrom::Start(place))?;
        match self.file.read_exact(&mut found) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            other => other.map(|()| found == magic),
        }
    }

    /// Puts it among the images, under its hash. It is on disk when this returns.
    pub fn keep(mut self, layout: &Layout) -> io::Result<Taken> {
        self.file.sync_all()?;
        let taken = Taken {
            sha256: self.hash.clone().finalize().into(),
            bytes: self.bytes,
        };
        layout.share_image(&self.path)?;
        let target = layout.image(&hex(&taken.sha256));
        fs::rename(&self.path, target)?;
        self.kept = true;
        File::open(layout.images())?.sync_all()?;
        Ok(taken)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "half a file could not be removed");
        }
    }
}

/// Whether a file is here.
pub fn is_here(layout: &Layout, sha256: &[u8; 32]) -> bool {
    layout.image(&hex(sha256)).exists()
}

/// Removes what earlier agents left half-way: of imports, and of what they fetched from other nodes. What is used already stays, with the
/// link that leads to it; one that leads nowhere goes.
pub fn remove_parts(layout: &Layout) -> io::Result<()> {
    let folders = [
        layout.images(),
        layout.bases(),
        layout.layers(),
        layout.streams(),
    ];
    for folder in folders {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let is_part = path
                .extension()
                .is_some_and(|extension| extension == "part");
            let whole = match is_part {
                true => path.with_extension(""),
                false => path.clone(),
            };
            let (is_link, leads_on) = (whole.is_symlink(), whole.exists());
            let is_used = is_link && leads_on;
            if (is_part || is_link) && !is_used {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(&dir.path().join("data"), None).unwrap();
        (dir, layout)
    }

    #[test]
    fn a_file_is_kept_under_its_hash_and_half_a_file_is_not() {
        let (_dir, layout) = layout();
        let mut incoming = Incoming::begin(&layout, "a").unwrap();
        incoming.write(b"hel").unwrap();
        incoming.write(b"lo").unwrap();
        let taken = incoming.keep(&layout).unwrap();
        assert_eq!(
            hex(&taken.sha256),
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        );
        assert!(is_here(&layout, &taken.sha256));
        drop(Incoming::begin(&layout, "b").unwrap());
        assert_eq!(fs::read_dir(layout.images()).unwrap().count(), 1);
    }

    #[test]
    fn kernels_and_initrds_are_known_by_their_beginning() {
        let (_dir, layout) = layout();
        let mut kernel = Incoming::begin(&layout, "k").unwrap();
        kernel.write(&[0; 0x202]).unwrap();
        kernel.write(b"HdrS").unwrap();
        assert!(kernel.is_kernel().unwrap() && !kernel.is_initrd().unwrap());
        let mut initrd = Incoming::begin(&layout, "i").unwrap();
        initrd.write(b"070701").unwrap();
        assert!(initrd.is_initrd().unwrap() && !initrd.is_kernel().unwrap());
    }
}
