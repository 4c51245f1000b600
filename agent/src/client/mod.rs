//! The command line: reads arguments, asks an agent, prints its answer. Called by `main` for everything but `run`.

pub mod args;
mod commands;
pub mod failure;
mod follow;
pub(crate) mod map;
pub mod output;
pub mod progress;
pub mod reach;
pub mod retry;
pub mod secrets;
mod terminal;
pub mod tree;
pub mod units;
pub mod views;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::CommandFactory as _;
use serde::Serialize;

use self::{
    args::{Cli, Command, Format, Global},
    failure::Failure,
    output::Row,
    reach::Reach,
};

/// What every command is given.
struct Context {
    global: Global,
}

impl Context {
    /// The agents that the user named.
    fn reach(&self) -> Result<Reach, Failure> {
        self.reach_for(self.global.timeout())
    }

    /// The same, for calls that may take so long.
    fn reach_for(&self, timeout: Duration) -> Result<Reach, Failure> {
        Reach::for_user(&self.global.addr, self.global.certs.as_deref(), timeout)
    }

    fn format(&self) -> Format {
        self.global.output
    }

    /// Whether the output is for people.
    fn for_people(&self) -> bool {
        matches!(self.format(), Format::Table | Format::Wide)
    }

    fn list<T: Serialize + Row>(&self, items: &[T]) -> Result<(), Failure> {
        Ok(output::list(
            &mut io::stdout().lock(),
            self.format(),
            items,
        )?)
    }

    /// One object: a table of one row, or the object itself.
    fn one<T: Serialize + Row>(&self, item: T) -> Result<(), Failure> {
        if self.for_people() {
            self.list(&[item])
        } else {
            self.data(&item)
        }
    }

    /// All that is known of one object.
    fn show<T: Serialize>(&self, item: &T) -> Result<(), Failure> {
        Ok(output::object(
            &mut io::stdout().lock(),
            self.format(),
            item,
        )?)
    }

    fn data<T: Serialize>(&self, item: &T) -> Result<(), Failure> {
        Ok(output::data(&mut io::stdout().lock(), self.format(), item)?)
    }

    /// A line for each thing there is to say of something, for people.
    fn lines(&self, lines: &[(&'static str, String)]) -> Result<(), Failure> {
        for (name, value) in lines {
            self.say(format_args!("{name:10}{value}"))?;
        }
        Ok(())
    }

    /// A line for people.
    fn say(&self, line: impl std::fmt::Display) -> Result<(), Failure> {
        Ok(writeln!(io::stdout().lock(), "{line}")?)
    }
}

/// Carries out a command other than `run`.
///
/// # Errors
/// What went wrong, ready to be printed; its kind tells the exit code.
pub async fn execute(global: Global, command: Command) -> Result<(), Failure> {
    let context = Context { global };
    match command {
        Command::Run(_)
        | Command::PageServer { .. }
        | Command::Watchdog
        | Command::Switch { .. } => Err(Failure::usage("that is the daemon's", "")),
        Command::Init(args) => commands::init::run(&context, args),
        Command::Join(args) => commands::join::run(&context, args).await,
        Command::Recover(args) => commands::recover::run(&context, args),
        Command::Backup(args) => commands::backup::run(&context, args).await,
        Command::Restore(args) => commands::restore::run(&context, args),
        Command::Authority(command) => commands::authority::run(&context, command).await,
        Command::Cert(command) => commands::cert::run(&context, command).await,
        Command::Token(command) => commands::token::run(&context, command).await,
        Command::Status => commands::status::status(&context).await,
        Command::Doctor => commands::status::doctor(&context).await,
        Command::Node(command) => commands::node::run(&context, command).await,
        Command::Image(command) => commands::image::run(&context, command).await,
        Command::Vm(command) => commands::vm::run(&context, command).await,
        Command::Exec(args) => commands::exec::run(&context, args).await,
        Command::Map(args) => map::run(&context, *args).await,
        Command::Maps(command) => commands::maps::run(&context, command).await,
        Command::Cp(args) => commands::copy::run(&context, args).await,
        Command::Forward(args) => commands::forward::run(&context, args).await,
        Command::Fork(args) => commands::fork::run(&context, args).await,
        Command::Group(command) => commands::group::run(&context, command).await,
        Command::Snapshot(command) => commands::snapshot::run(&context, command).await,
        Command::Tree(args) => commands::tree::run(&context, args).await,
        Command::Keep(args) => commands::keep::keep(&context, args).await,
        Command::Lease(command) => commands::keep::lease(&context, command).await,
        Command::Share(args) => commands::owner::share(&context, args).await,
        Command::Quota(command) => commands::owner::quota(&context, command).await,
        Command::Op(command) => commands::operation::run(&context, command).await,
        Command::Events(args) => commands::events::run(&context, args).await,
        Command::Logs(args) => commands::logs::run(&context, args).await,
        Command::Console(args) => commands::console::run(&context, args).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "fpagent", &mut script);
            Ok(io::stdout().lock().write_all(&script)?)
        }
    }
}
