//! Arguments of `events`.

use clap::Args;

/// Its help.
pub const EVENTS_EXAMPLES: &str = "\
Examples:
  fpagent events
  fpagent events -f
  fpagent events -f --vm demo --kind vm.failed --kind vm.restarting
  fpagent events --since 01J9ZK3A8GQ4W3X7N5T2R6V0YB.8412 -f -o json

The newest 8,192 events of the cluster are kept, the same on every node. Each has a position; --since goes on after one, without a
gap or a repetition, whichever agent is asked: -f does that by itself when its agent is gone. With -o json there is an object a line.

Kinds, also by what is before the point:
  vm          created wanted starting running paused stopped failed suspended restarting reset moved stays unready
              shared unshared kept changed deleted
  snapshot    begun ready named unnamed held lost secured warmed shared unshared kept changed deleted
  operation   begun progressed cancelling complete failed
  map         started driven finished cancelled failed deleted
  image       imported held shared unshared changed deleted
  node        joined started moved labelled cordoned uncordoned draining drained changed removed
  lease       created ended
  quota       set deleted
  token       created used ended (for administrators)
  certificate issued revoked ended (for administrators)
  cluster     founded upgraded
  authority   spreading renewing finished compromised

That a node is online or not is no event: each node sees that for itself (`fpagent node ls`).";

/// What to tell of what happens.
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on, or from --since on.
    #[arg(long, short)]
    pub follow: bool,
    /// Begin after this position; `oldest` for all that are kept, `newest` for none of them [default: oldest, with -f newest].
    #[arg(
        long,
        value_name = "POSITION",
        default_value = "",
        hide_default_value = true
    )]
    pub since: String,
    /// Only what is about this VM, its snapshots and operations: name or id, also when it is gone.
    #[arg(long, value_name = "VM", default_value = "", hide_default_value = true)]
    pub vm: String,
    /// Only this kind, such as vm or vm.failed; several times for several.
    #[arg(long = "kind", value_name = "KIND")]
    pub kinds: Vec<String>,
}
