//! The program `fpagent`: the daemon and its client in one. Here, and not in `main.rs`, so that tests can build it with failpoints.

use std::{io, process::ExitCode};

use clap::Parser as _;
use tokio::runtime::{Builder, Runtime};

use crate::{
    arriving,
    client::{
        self,
        args::{Cli, Command},
    },
    daemon,
    errors::chain,
    fence, switch,
};

/// The exit code for a command line, or settings, that cannot be read.
const WRONG_USAGE: u8 = 2;

/// Does what the command line says.
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    match command {
        Command::Run(options) => match &options.config {
            None => serve(*options),
            Some(file) => {
                let line: Vec<_> = std::env::args_os().collect();
                match daemon::config::load(&line, file) {
                    Ok(options) => serve(options),
                    Err(error) => {
                        eprintln!("fpagent: {}", chain(&error));
                        ExitCode::from(WRONG_USAGE)
                    }
                }
            }
        },
        Command::PageServer { data_dir } => beside_agent(arriving::serve::run(&data_dir)),
        Command::Watchdog => beside_agent(fence::watchdog::run()),
        Command::Switch { user, group } => beside_agent(switch::serve::run(user.zip(group))),
        command => ask(global, command),
    }
}

/// What became of a process that the agent had started.
fn beside_agent(ended: anyhow::Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fpagent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: daemon::options::RunOptions) -> ExitCode {
    let served = threads("machines", None)
        // What answers calls and keeps the state hands each call on several times: on one thread that wakes nobody. What works for
        // machines blocks now and then, and must not hold those up.
        .and_then(|machines| Ok((machines, threads("calls", Some(1))?)))
        .map_err(anyhow::Error::from)
        .and_then(|(machines, calls)| {
            machines.block_on(daemon::run(options, calls.handle().clone()))
        });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fpagent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Threads that tasks run on: as many as there are processors, or so many.
fn threads(name: &str, count: Option<usize>) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(count) = count {
        builder.worker_threads(count);
    }
    builder.thread_name(name).enable_all().build()
}

fn ask(global: client::args::Global, command: Command) -> ExitCode {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("fpagent: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(client::execute(global, command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.kind.is_silent() {
                eprintln!("{}", failure.line());
            }
            ExitCode::from(failure.kind.exit_code())
        }
    }
}
