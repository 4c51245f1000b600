//! `fpguest`, the program inside a guest. The guest's init starts it (`deploy/build-image.sh`).
//!
//! It is linked statically and takes no crates for its command line: it lies in every initrd.

mod agent;
mod ask;
mod beat;
mod churn;
mod echo;
mod fill;
mod hostile;
mod init;
mod options;
mod ports;
mod pulse;
mod sys;

use std::process::ExitCode;

const USAGE: &str = "\
usage: fpguest agent
       fpguest fork [-n 1] [--name NAME]
       fpguest exit CODE
       fpguest wait [CHILD...]
       fpguest get KEY
       fpguest identity | watch | up
       fpguest pulse --disk FILE [--raw DEVICE [--raw-offset 0]] [--interval-ms 100]
       fpguest beat [--interval-ms 50]
       fpguest churn [--mib 64] [--disk FILE]
       fpguest fill [--mib 64] [--rate MIB]
       fpguest echo --port NAME
       fpguest hostile --kind KIND
       fpguest init

agent  serves the host's agent through the virtio serial port org.forkypig.agent, and programs of this
       guest through /run/forkypig/agent.sock
fork   forks this machine, where that is allowed: prints the children's names in the parent, and 0 and
       its number in each child
exit   ends this machine and leaves CODE in its status
wait   prints how children end that this machine forked, as they do: name and code; fails unless all
       end with 0
get    prints what was given as KEY with the request for this fork (fork --set, --secret)
identity, watch   print who this machine is, watch again whenever it becomes another
up     waits until the host has said who this machine is, where there is a host and an agent to hear it
pulse  writes a numbered, checksummed record again and again: to memory, to FILE (synced), to
       standard output; with --raw also, past all caches, to 2.3 MiB of a block device
beat   prints a mark again and again
churn  rewrites and zeroes memory as fast as it can, with a thread on each processor, and checks
       that it finds what it wrote; with --disk it does the same with a file's blocks
fill   fills memory once and writes so much of it again each second
echo   sends back what comes through a virtio serial port
hostile
       has the agent's port, and does not do as an agent should, to see what its host makes of that. Kinds:
       silent deaf rubbish zeros version another length endless tiny overrun opens credits foreign;
       honest, which is an agent as it should be; or name: the kind is the VM's name
init   the first process of a guest, which the kernel starts as /sbin/init
";

fn main() -> ExitCode {
    if init::is_asked_for(std::env::args_os()) {
        return init::run();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = words.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    if command == "--help" || command == "-h" {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let outcome = options::parse(command, rest).map(|command| match command {
        options::Command::Agent => agent::run(),
        options::Command::Ask(ask) => ask::run(&ask),
        options::Command::Up => ask::wait_until_known(),
        options::Command::Pulse(pulse) => pulse::run(&pulse),
        options::Command::Beat { interval } => beat::run(interval),
        options::Command::Churn(churn) => churn::run(&churn),
        options::Command::Fill(fill) => fill::run(&fill),
        options::Command::Echo { port } => echo::run(&port),
        options::Command::Hostile { kind } => hostile::run(&kind),
    });
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("fpguest {command}: {error}");
            ExitCode::FAILURE
        }
        Err(wrong) => {
            eprint!("fpguest: {wrong}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
