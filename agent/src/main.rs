//! `fpagent`: the daemon and its client in one program.

fn main() -> std::process::ExitCode {
    agent::program::main()
}
