//! `fpagent`, which has failpoints when tests are built, and can be a newer one than there is: see `qemu::failpoint` and `raft::version`.

fn main() -> std::process::ExitCode {
    agent::program::main()
}
