//! `fpagent`, which has failpoints when tests are built: see `qemu::failpoint`.

fn main() -> std::process::ExitCode {
    agent::program::main()
}
