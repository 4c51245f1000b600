//! Boots the tiny image in QEMU and reads back what `fpguest pulse` wrote to memory, disk and
//! console. Needs `FP_TEST_IMAGE`, a directory that `deploy/build-image.sh tiny` made.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails where it panics"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fp_guest::history::{common_prefix, parse_console, parse_disk, verify};
use fp_guest::pages::{MAGIC, Scan};
use fp_guest::record::Record;

const READY: &str = "forkypig-guest ready";
/// Under emulation, beside other load: four processors that never rest, on two.
const PATIENCE: Duration = Duration::from_secs(240);

struct Guest {
    folder: tempfile::TempDir,
    qemu: Child,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn image() -> PathBuf {
    let image = std::env::var_os("FP_TEST_IMAGE");
    PathBuf::from(image.expect("set FP_TEST_IMAGE to what `deploy/build-image.sh tiny DIR` made"))
}

/// The host's time stamp counter in kHz. Under emulation it is the guest's as well, and a guest on
/// `microvm` has only the PIT to measure it by: where the host is busy that fails, and with it the
/// boot, for there is no other clock to set the timer by. So it is told, and told to believe it: on a
/// busy host the watchdog takes a late look for a counter that goes wrong.
fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(50));
    let (elapsed, last) = (start.elapsed(), ticks());
    (last - first) * 1000 / elapsed.as_micros() as u64
}

/// The image's kernel command line, and what emulation needs on it.
fn cmdline() -> String {
    let settings = std::fs::read_to_string(image().join("image.env")).unwrap();
    let line = settings
        .lines()
        .find_map(|line| line.strip_prefix("CMDLINE="));
    format!(
        "{} tsc_early_khz={} tsc=reliable",
        line.unwrap().trim_matches('"'),
        tsc_khz()
    )
}

impl Guest {
    fn start(cpus: u32, words: &str) -> Self {
        let image = image();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            folder
                .path()
                .join(name)
                .into_os_string()
                .into_string()
                .unwrap()
        };
        succeed(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
                .args([image.join("disk.qcow2"), at("disk.qcow2").into()]),
        );
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "microvm,memory-backend=m",
                "-accel",
                "tcg,tb-size=32",
                "-cpu",
                "max",
            ])
            .args([
                "-m",
                "256",
                "-smp",
                &cpus.to_string(),
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-action", "reboot=shutdown"])
            .args([
                "-object",
                &format!(
                    "memory-backend-file,id=m,size=256M,share=on,mem-path={}",
                    at("ram")
                ),
            ])
            .args(["-serial", &format!("file:{}", at("console"))])
            .args([
                "-blockdev",
                &format!(
                    "qcow2,node-name=root,file.driver=file,file.filename={}",
                    at("disk.qcow2")
                ),
            ])
            .args([
                "-device",
                "virtio-blk-device,drive=root",
                "-device",
                "virtio-rng-device",
            ])
            .args([PathBuf::from("-kernel"), image.join("vmlinuz")])
            .args([PathBuf::from("-initrd"), image.join("initrd")])
            .args(["-append", &format!("{} {words}", cmdline())])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { folder, qemu }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn console(&self) -> String {
        std::fs::read(self.file("console")).map_or(String::new(), |text| {
            String::from_utf8_lossy(&text).into_owned()
        })
    }

    fn wait(&mut self, what: &str, reached: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !reached(&self.console()) {
            let ended = self.qemu.try_wait().unwrap();
            assert!(
                ended.is_none() && start.elapsed() < PATIENCE,
                "no {what}, QEMU {ended:?}, console: {}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The file of the guest's disk: its journal is replayed on a copy first, as a boot would.
    fn disk_file(&self, path: &str) -> Vec<u8> {
        let (raw, file) = (self.file("disk.raw"), self.file("file"));
        succeed(
            Command::new("qemu-img")
                .args(["convert", "-O", "raw"])
                .args([self.file("disk.qcow2"), raw.clone()]),
        );
        let fsck = Command::new("/sbin/e2fsck")
            .args(["-f", "-y"])
            .arg(&raw)
            .output()
            .unwrap();
        // 1: something was repaired, which the replayed journal is.
        assert!(fsck.status.code().is_some_and(|code| code <= 1), "{fsck:?}");
        dump(&raw, path, &file);
        std::fs::read(&file).unwrap()
    }
}

fn dump(raw: &Path, path: &str, to: &Path) {
    let request = format!("dump {path} {}", to.display());
    succeed(
        Command::new("/sbin/debugfs")
            .args(["-R", &request])
            .arg(raw),
    );
    assert!(File::open(to).is_ok(), "no {path} on the disk");
}

fn in_memory(ram: &[u8], run: u64) -> Vec<Record> {
    Scan::of(ram).unwrap().records(run).unwrap()
}

fn records_are_the_same_in_all_three_places(cpus: u32, words: &str) {
    let mut guest = Guest::start(cpus, words);
    guest.wait(READY, |console| console.contains(READY));
    guest.wait("a page and more of records", |console| {
        parse_console(console).len() >= 135
    });
    // As if the power were cut: nothing is told to the guest.
    guest.qemu.kill().unwrap();
    guest.qemu.wait().unwrap();

    let console = guest.console();
    assert!(!console.contains("fpguest churn:"), "{console}");
    let printed = parse_console(&console);
    verify(&printed).unwrap();
    let stored = parse_disk(&guest.disk_file("/var/lib/pulse")).unwrap();
    verify(&stored).unwrap();
    let held = in_memory(&std::fs::read(guest.file("ram")).unwrap(), printed[0].run);
    assert_eq!(common_prefix(&printed, &stored), printed.len());
    assert_eq!(common_prefix(&stored, &held), stored.len());
    assert!(
        held.len() - stored.len() <= 1,
        "{} in memory, {} on disk",
        held.len(),
        stored.len()
    );
    // The terminal's buffer may hold one more back.
    let (disk, lines) = (stored.len(), printed.len());
    assert!(disk - lines <= 2, "{disk} on disk, {lines} printed");
}

#[test]
fn records_are_the_same_in_all_three_places_with_one_processor() {
    records_are_the_same_in_all_three_places(1, "fp.pulse");
}

#[test]
fn records_are_the_same_in_all_three_places_beside_churn_on_four_processors() {
    records_are_the_same_in_all_three_places(4, "fp.pulse fp.churn=32 fp.churn-disk");
}

#[test]
fn the_program_itself_is_not_taken_for_records() {
    // Not compressed: the program is in it as it is in memory.
    let initrd = std::fs::read(image().join("initrd")).unwrap();
    let has = |bytes: &[u8]| initrd.windows(bytes.len()).any(|there| there == bytes);
    assert!(has(b"fpguest pulse --disk FILE"));
    assert!(!has(&MAGIC));
}

#[test]
fn without_a_disk_the_guest_stays_in_its_initrd_and_a_reboot_ends_qemu() {
    // No `Guest`: it has neither a disk nor anything to read back but its console.
    let image = image();
    let console = tempfile::NamedTempFile::new().unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-M",
            "microvm",
            "-accel",
            "tcg,tb-size=32",
            "-cpu",
            "max",
            "-m",
            "256",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-action",
            "reboot=shutdown",
        ])
        .args(["-chardev", "stdio,id=c,signal=off", "-serial", "chardev:c"])
        .args([PathBuf::from("-kernel"), image.join("vmlinuz")])
        .args([PathBuf::from("-initrd"), image.join("initrd")])
        .args(["-append", &cmdline()])
        .stdin(Stdio::piped())
        .stdout(console.reopen().unwrap())
        .spawn()
        .unwrap();
    let (start, mut asked) = (Instant::now(), false);
    let ended = loop {
        if let Some(status) = qemu.try_wait().unwrap() {
            break status;
        }
        let text = std::fs::read(console.path()).unwrap();
        let text = String::from_utf8_lossy(&text);
        if !asked && text.contains("/ # ") {
            std::io::Write::write_all(qemu.stdin.as_mut().unwrap(), b"reboot\n").unwrap();
            asked = true;
        }
        if start.elapsed() > PATIENCE {
            qemu.kill().unwrap();
            qemu.wait().unwrap();
            panic!("the guest did not boot and reboot: {text}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(asked && ended.success(), "{ended}");
}
