//! The program `fpagent`: the daemon and its client in one. Here, and not in `main.rs`, so that tests can build it with failpoints.

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    client::{
        self,
        args::{Cli, Command},
    },
    daemon,
    errors::chain,
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
        command => ask(global, command),
    }
}

fn serve(options: daemon::options::RunOptions) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let served = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(daemon::run(options)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fpagent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(global: client::args::Global, command: Command) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
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
