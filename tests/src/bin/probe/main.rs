//! A program in QEMU's place: what is left to somebody who has got out of a guest. Where no orders lie beside it, it is QEMU, so that an
//! agent can be told to run it for all its VMs. With `--here ORDERS` it carries out orders as whoever runs it, and ends.

mod sys;

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use harness::probe::{Attempt, MARK, Outcome, Report, orders_of};

/// What the agent runs.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [here, orders] = &arguments[..]
        && here == "--here"
    {
        return report(&fs::read_to_string(orders)?, "");
    }
    let name = arguments
        .windows(2)
        .find_map(|pair| (pair[0] == "-name").then(|| pair[1].trim_start_matches("fp-")));
    match (name, fs::read_to_string(orders_of(&env::current_exe()?))) {
        (Some(vm), Ok(orders)) => {
            report(&orders, vm)?;
            // As a QEMU that says nothing: what it printed goes with its folder.
            loop {
                thread::sleep(Duration::from_secs(60));
            }
        }
        _ => Err(Command::new(QEMU).args(arguments).exec().into()),
    }
}

fn report(orders: &str, vm: &str) -> Result<(), Box<dyn Error>> {
    let mut wanted: Vec<Attempt> = serde_json::from_str(orders)?;
    if !vm.is_empty() {
        wanted.push(Attempt::Create(format!("vms/{vm}/qemu").into()));
    }
    let mut report = Report {
        pid: std::process::id(),
        vm: vm.to_owned(),
        attempts: Vec::new(),
        as_own_root: Err(0),
        status: fs::read_to_string("/proc/self/status")?,
        environment: env::vars()
            .map(|(key, value)| format!("{key}={value}"))
            .collect(),
        descriptors: descriptors()?,
        directory: env::current_dir()?,
    };
    let all = || -> Vec<(Attempt, Outcome)> {
        let one = |attempt: &Attempt| {
            let outcome = try_it(attempt).map_err(|error| error.raw_os_error().unwrap_or_default());
            (attempt.clone(), outcome)
        };
        wanted.iter().map(one).collect()
    };
    report.attempts = all();
    if !vm.is_empty() {
        report.as_own_root = match sys::own_user_namespace() {
            Ok(()) => Ok(all()),
            Err(error) => Err(error.raw_os_error().unwrap_or_default()),
        };
    }
    let mut out = io::stdout().lock();
    writeln!(out, "\n{MARK}{}", serde_json::to_string(&report)?)?;
    Ok(out.flush()?)
}

fn descriptors() -> io::Result<BTreeMap<i32, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // The one that the folder is read by is gone by then.
        if let (Some(Ok(fd)), Ok(path)) = (
            entry.file_name().to_str().map(str::parse),
            fs::read_link(entry.path()),
        ) && path != Path::new(&format!("/proc/{}/fd", std::process::id()))
        {
            found.insert(fd, path);
        }
    }
    Ok(found)
}

fn try_it(attempt: &Attempt) -> io::Result<()> {
    match attempt {
        Attempt::Read(path) => match File::open(path)?.read(&mut [0]) {
            // An address of 0 in a process's memory, a log that is empty: it is open.
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(()),
            Err(error) => Err(error),
        },
        Attempt::Write(path) => File::options().write(true).open(path).map(drop),
        Attempt::List(path) => fs::read_dir(path).map(drop),
        Attempt::Create(folder) => {
            let path = folder.join(format!("probe-{}", std::process::id()));
            File::create_new(&path)?;
            fs::remove_file(path)
        }
        Attempt::Follow(path) => fs::read_link(path).map(drop),
        Attempt::Connect(path) => UnixStream::connect(path).map(drop),
        Attempt::Signal(pid) => sys::signal(*pid),
        Attempt::Trace(pid) => sys::trace(*pid),
        Attempt::ReadMemory { pid, address } => {
            qemu::sys::vm_read::read(*pid, &mut [(*address, &mut [0; 8])])
        }
        Attempt::TakeDescriptor(pid) => sys::take_descriptor(*pid),
        // Each in a process of its own: this one goes on as who it is.
        Attempt::BecomeUser(uid) => Command::new("/bin/true").uid(*uid).status().map(drop),
        Attempt::BecomeGroup(gid) => Command::new("/bin/true").gid(*gid).status().map(drop),
        Attempt::DropGroups => sys::in_a_child(|| Ok(rustix::thread::set_thread_groups(&[])?)),
        Attempt::Execute(program) => {
            let said = Command::new(program).arg("-u").output()?;
            match said.status.success() && said.stdout.trim_ascii() == b"0" {
                true => Ok(()),
                false => Err(io::Error::from_raw_os_error(libc::EPERM)),
            }
        }
    }
}
