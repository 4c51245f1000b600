//! A node's authority on disk while it is being replaced. The new one is laid beside the old one, in a folder of its own, and takes its
//! place file by file: whatever a crash interrupts, the next start knows what is missing.

use std::{fs, io};

use qemu::failpoint;

use super::{CERTS, DataDir, prepare::remove_all};
use crate::trust::{TrustError, authority::Authority, files, replacement::Known};

/// The folder of an authority that does not sign yet, and the same while it is being written.
const NEXT: &str = "next";
const NEXT_PART: &str = ".next";
const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key.pem";

fn missing(error: &TrustError) -> bool {
    matches!(error, TrustError::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

impl DataDir {
    /// What the node knows of the authority's replacement.
    pub fn replacement(&self) -> Result<Option<Known>, TrustError> {
        Known::load(&self.root.join(CERTS))
    }

    /// Keeps what the node knows of the authority's replacement.
    pub fn keep_replacement(&self, known: &Known) -> Result<(), TrustError> {
        known.save(&self.root.join(CERTS))
    }

    /// Lays an authority beside the one that signs.
    pub fn stage_authority(&self, authority: &Authority) -> Result<(), TrustError> {
        let certs = self.root.join(CERTS);
        let (part, next) = (certs.join(NEXT_PART), certs.join(NEXT));
        remove_all(&part)?;
        remove_all(&next)?;
        files::private_folder(&part)?;
        authority.save(&part.join(CERTIFICATE), &part.join(KEY))?;
        files::rename(&part, &next)
    }

    /// Throws away what lies there.
    pub fn unstage_authority(&self) -> Result<(), TrustError> {
        remove_all(&self.root.join(CERTS).join(NEXT))
    }

    /// The authority that lies there, if one does.
    pub fn staged_authority(&self, of: &Authority) -> Result<Option<Authority>, TrustError> {
        let next = self.root.join(CERTS).join(NEXT);
        match Authority::load(of.cluster(), &next.join(CERTIFICATE), &next.join(KEY)) {
            Err(error) if missing(&error) => Ok(None),
            loaded => loaded.map(Some),
        }
    }

    /// Has it sign from here on. The one that did so is gone.
    pub fn take_staged_authority(&self) -> Result<(), TrustError> {
        let certs = self.root.join(CERTS);
        files::rename(&certs.join(NEXT).join(KEY), &certs.join(KEY))?;
        failpoint::reached("authority.key-in-place");
        self.complete_authority()
    }

    /// Goes on with what was interrupted in the middle of that: the key is there, and its certificate is not.
    pub(super) fn complete_authority(&self) -> Result<(), TrustError> {
        let certs = self.root.join(CERTS);
        let next = certs.join(NEXT);
        if next.join(KEY).exists() {
            return Ok(());
        }
        match files::rename(&next.join(CERTIFICATE), &certs.join(CERTIFICATE)) {
            Err(error) if missing(&error) => return Ok(()),
            renamed => renamed?,
        }
        fs::remove_dir(&next).map_err(TrustError::file("remove", &next))
    }
}
