//! fork(2) for machines: guests fork their own VMs, several levels deep, and get to know how their children end; what they may not do is
//! refused; and a program that waits for its fork gets one answer, whatever happens to the host's agent or is done by others meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead as _, BufReader},
    net::TcpListener,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use harness::{
    cluster::{Cluster, PATIENCE},
    fpagent,
    guests::{Program, amount, boot, exec_with, put_script, shell},
    soundness::items,
    wait_for,
};
use serde_json::Value;

/// Forks COUNT machines that do the same with one level less, waits for them, and ends with how many are below it and itself.
const GROW: &str = "
depth=$1; child=
while [ $depth -gt 0 ]; do
    if ! said=$(fpguest fork -n $2 2>&1); then
        echo \"$said\" >&2
        # A child that does not end is waited for without an end.
        [ -z \"$child\" ] || exec fpguest exit 99
        exit 1
    fi
    case \"$said\" in
        '0 '*) child=yes; depth=$((depth - 1)) ;;
        *) break ;;
    esac
done
below=0
if [ $depth -gt 0 ]; then
    fpguest wait $said >/run/ended 2>&1
    while read -r name code rest; do
        case $code in
            *[!0-9]* | '') ;;
            *) below=$((below + code)) ;;
        esac
    done </run/ended
fi
[ -z \"$child\" ] || exec fpguest exit $((below + 1))
echo $below
";

/// Asks for COUNT forks, tells the host's PORT with a WORD when it waits for them, and writes down what it is answered. Whether it waits shows in the
/// system call that it is in: 45 is recvfrom(2), of its answer. Who tells the host is not waited for: in a child nobody answers it.
const ASKER: &str = "
rm -f /run/answer
fpguest fork -n $2 >/run/answer.new 2>&1 &
asks=$!
until grep -q '^45 ' /proc/$asks/syscall || ! kill -0 $asks; do :; done
echo $3 | busybox nc 10.0.2.2 $1 >/dev/null &
wait $asks
echo code $? >>/run/answer.new
mv /run/answer.new /run/answer
";

/// How deep it goes.
const LEVELS: u32 = 3;

/// The VMs, by name.
fn vms(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, Value>> {
    let name = |vm: &Value| Some((vm["name"].as_str()?.to_owned(), vm.clone()));
    Ok(items(cluster, "vm")?.iter().filter_map(name).collect())
}

#[test]
fn a_guest_forks_itself_three_levels_deep_and_what_it_may_not_is_refused() -> anyhow::Result<()> {
    let count = u32::try_from(amount("FP_SELF_FORKS", 2))?;
    let all: u32 = (1..=LEVELS).map(|level| count.pow(level)).sum();
    let cluster = Cluster::with_guests(3)?;
    let most = all.to_string();
    let may = ["--node", "node2", "--allow-self-fork", &most];
    boot(&cluster, 1, &[("p", &may), ("plain", &["--node", "node3"])])?;
    put_script(&cluster, 1, "p", "/root/grow", GROW)?;

    let asked = ["/root/grow", &LEVELS.to_string(), &count.to_string()];
    let output = exec_with(&cluster, 3, "p", &[], &asked, b"")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.trim(), most, "{problem} {:?}", vms(&cluster)?.keys());

    // The cluster shows who is whose.
    let found = vms(&cluster)?;
    assert_eq!(found.len(), 2 + all as usize);
    let tree = cluster.node(1).fp(&["tree", "p"])?;
    tree.success()?;
    let mut generation: BTreeSet<String> = BTreeSet::from(["p".to_owned()]);
    for level in 1..=LEVELS {
        let mut next = BTreeSet::new();
        for (name, vm) in &found {
            let parent = vm["parentName"].as_str().unwrap_or_default();
            if !generation.contains(parent) {
                continue;
            }
            anyhow::ensure!(vm["byGuest"] == true, "{vm}");
            anyhow::ensure!(tree.out.contains(name), "{name} is not in {}", tree.out);
            // It ended with the number of machines below it, itself included.
            let below: u32 = (0..=LEVELS - level).map(|level| count.pow(level)).sum();
            assert_eq!(vm["ending"]["exitCode"], below, "{vm}");
            let answer = cluster.node(1).fp(&["vm", "wait", name, "--for", "exit"])?;
            assert_eq!(answer.code, i32::try_from(below)?);
            next.insert(name.clone());
        }
        assert_eq!(next.len(), count.pow(level) as usize, "{next:?}");
        generation = next;
    }

    // More than may live, and any where none may.
    let wanted = format!("{} more", all + 1);
    for (vm, number, words) in [
        ("p", all + 1, [most.as_str(), wanted.as_str()]),
        ("plain", 1, ["plain", "--allow-self-fork"]),
    ] {
        let argv = ["fpguest", "fork", "-n", &number.to_string()];
        let output = exec_with(&cluster, 1, vm, &[], &argv, b"")?;
        let problem = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{problem}");
        assert_eq!(output.stdout, b"");
        for word in words {
            anyhow::ensure!(problem.contains(word), "{word:?} is not in {problem}");
        }
    }
    assert_eq!(vms(&cluster)?.len(), 2 + all as usize);
    Ok(())
}

/// Where guests tell that they wait.
struct Ear(TcpListener);

impl Ear {
    fn new() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    fn port(&self) -> anyhow::Result<u16> {
        Ok(self.0.local_addr()?.port())
    }

    /// Waits until a guest says this word. Others say others: those who were forked while they were at it say it once more.
    fn hear(&self, wanted: &str) -> anyhow::Result<()> {
        wait_for(&format!("a guest to say {wanted:?}"), PATIENCE, || {
            let mut connection = match self.0.accept() {
                Ok((connection, _)) => connection,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            connection.set_nonblocking(false)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            let mut word = String::new();
            BufReader::new(&mut connection).read_line(&mut word)?;
            Ok((word.trim() == wanted).then_some(()))
        })
    }
}

/// What a guest's program was answered, a line each; the last is its exit code.
fn answer(cluster: &Cluster, vm: &str) -> anyhow::Result<Vec<String>> {
    let read = "until [ -s /run/answer ]; do sleep 0.1; done; cat /run/answer";
    let limit = ["--timeout", "60s"];
    let output = exec_with(cluster, 1, vm, &limit, &["sh", "-c", read], b"")?;
    anyhow::ensure!(output.status.success(), "no answer in {vm}: {output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

/// A program was answered in the parent with these children, which are all that the parent forked by itself, and in each of them. They
/// are deleted then.
fn one_set(cluster: &Cluster, count: usize) -> anyhow::Result<()> {
    let mut told = answer(cluster, "p")?;
    assert_eq!(told.pop().as_deref(), Some("code 0"), "{told:?}");
    let told: BTreeSet<String> = told.into_iter().collect();
    let made: BTreeMap<String, Value> = vms(cluster)?
        .into_iter()
        .filter(|(_, vm)| vm["byGuest"] == true)
        .collect();
    let names: BTreeSet<String> = made.keys().cloned().collect();
    assert_eq!((&told, told.len()), (&names, count));
    for (name, vm) in &made {
        assert_eq!(
            answer(cluster, name)?,
            [format!("0 {}", vm["index"]), "code 0".to_owned()]
        );
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let remove = [&["vm", "rm", "--force"], &names[..]].concat();
    cluster.node(1).fp(&remove)?.success()
}

#[test]
fn a_program_that_waits_for_its_fork_gets_one_answer() -> anyhow::Result<()> {
    let mut cluster = Cluster::with_guests(3)?;
    boot(
        &cluster,
        1,
        &[("p", &["--node", "node2", "--allow-self-fork", "3"])],
    )?;
    put_script(&cluster, 1, "p", "/root/asker", ASKER)?;
    let ear = Ear::new()?;
    let port = ear.port()?;
    let ask = |word: &str| format!("/root/asker {port} 2 {word} >/dev/null 2>&1 </dev/null");

    // The host's agent is killed at moments of the request. It is sent again, and is the same one.
    for delay in [0, 40, 120, 300] {
        let word = format!("after-{delay}");
        let asks = format!("rm -f /run/answer; setsid {} &", ask(&word));
        shell(&cluster, 1, "p", &asks)?;
        ear.hear(&word)?;
        // Not to wait for something: moments of the request are what is covered.
        thread::sleep(Duration::from_millis(delay));
        restart(&mut cluster)?;
        one_set(&cluster, 2).with_context(|| format!("killed {delay} ms after it was asked"))?;
    }

    // It asks while no agent is there; and before one is there again, somebody else asks for a fork of the same VM: that child comes of
    // another request than the one that its program waits for. That the agent is gone shows by the end of what it had run.
    let asks = format!(
        "echo here; while kill -0 '$$' 2>/dev/null; do sleep 0.1; done; exec {}",
        ask("alone")
    );
    let script = format!("rm -f /run/answer; setsid sh -c '{asks}' & sleep 5555; :");
    let program = Program::start(&cluster, 3, "p", &[], &["sh", "-c", &script])?;
    assert_eq!(program.line()?, "here");
    cluster.node_mut(2).kill()?;
    ear.hear("alone")?;
    let address = cluster.node(1).address();
    let other =
        thread::spawn(move || fpagent::run(Some(&address), &["fork", "p", "--name", "other"]));
    wait_for("the other fork to be asked for", PATIENCE, || {
        let open = items(&cluster, "op")?
            .iter()
            .any(|one| one["state"] == "open");
        Ok(open.then_some(()))
    })?;
    restart(&mut cluster)?;
    let other = other
        .join()
        .map_err(|_| anyhow::anyhow!("the client panicked"))?;
    other?.success()?;
    one_set(&cluster, 2)?;
    let told = answer(&cluster, "other")?;
    assert_eq!(told.last().map(String::as_str), Some("code 1"), "{told:?}");
    anyhow::ensure!(told[0].contains("forked"), "{told:?}");
    assert_eq!(vms(&cluster)?.len(), 2);
    Ok(())
}

fn restart(cluster: &mut Cluster) -> anyhow::Result<()> {
    let agent = cluster.node_mut(2);
    agent.kill()?;
    agent.start()?;
    agent.wait_answers()
}
