//! The images that `deploy/build-image.sh` makes.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use anyhow::Context as _;

use crate::repository;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub enum Image {
    /// Busybox.
    Tiny,
    /// Debian with systemd.
    Debian,
}

/// Says in which image's guests the tests work that can do so in any: `tiny` or `debian`.
const GUESTS: &str = "FP_TEST_GUESTS";

impl Image {
    /// The one that guests are of whose tests ask for no more than that they can be worked in: the tiny one unless the environment says
    /// otherwise.
    pub fn of_guests() -> anyhow::Result<Self> {
        match env::var(GUESTS).as_deref() {
            Err(env::VarError::NotPresent) | Ok("tiny") => Ok(Self::Tiny),
            Ok("debian") => Ok(Self::Debian),
            other => anyhow::bail!("{GUESTS} is {other:?}: tiny and debian are known"),
        }
    }

    /// What a VM of it needs.
    pub fn memory(self) -> &'static str {
        match self {
            Self::Tiny => "256M",
            Self::Debian => "512M",
        }
    }

    /// Where it lies: in the folder that the environment names, or where `deploy/test.sh` makes it.
    pub fn folder(self) -> PathBuf {
        let (variable, _) = self.names();
        env::var_os(variable).map_or_else(|| self.usual_folder(), PathBuf::from)
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Tiny => ("FP_TEST_IMAGE", "tiny"),
            Self::Debian => ("FP_TEST_DEBIAN", "debian"),
        }
    }

    fn usual_folder(self) -> PathBuf {
        repository().join(".local/image").join(self.names().1)
    }

    /// The options of `fpagent image import` for it, with words added to its kernel's command line.
    pub fn import_options(self, words: &str) -> anyhow::Result<Vec<String>> {
        let folder = self.folder();
        let text = fs::read_to_string(folder.join("image.env")).with_context(|| {
            let kind = self.names().1;
            let usual = format!("deploy/build-image.sh {kind} .local/image/{kind}");
            format!("{}: run {usual}", folder.display())
        })?;
        let settings: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key, value.trim_matches('"')))
            .collect();
        let setting = |key: &str| {
            let value = settings.get(key).copied();
            value.with_context(|| format!("image.env has no {key}"))
        };
        let file = |name: &str| folder.join(name).display().to_string();
        let cmdline = format!("{} {words}", setting("CMDLINE")?);
        // One that hangs early, as emulated guests do now and then, is tried again before anybody stops waiting.
        let boot_timeout = match self {
            Self::Tiny => "30s",
            Self::Debian => "120s",
        };
        let options = [
            ("--kernel", file("vmlinuz")),
            ("--initrd", file("initrd")),
            ("--disk", file("disk.qcow2")),
            ("--cmdline", cmdline.trim().to_owned()),
            ("--ready-line", setting("READY_LINE")?.to_owned()),
            ("--boot-timeout", boot_timeout.to_owned()),
        ];
        let words = options.map(|(option, value)| [option.to_owned(), value]);
        Ok(words.into_iter().flatten().collect())
    }
}
