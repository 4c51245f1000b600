//! What can be typed, and what cannot.

use clap::{CommandFactory as _, Parser as _};

use super::{cluster::LabelChange, *};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("fpagent").chain(line.split_whitespace()))
}

#[test]
fn clap_finds_no_fault() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_examples() {
    fn check(command: &clap::Command) {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(
            help.contains("Examples:"),
            "{} has none",
            command.get_name()
        );
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn the_contract() {
    for line in [
        "run --data-dir D --config F",
        "init --data-dir D --name N --listen 1.2.3.4:5 --advertise h:5",
        "join --data-dir D --name N --listen 1.2.3.4:5 --token T",
        "token create --ttl 1h",
        "token ls",
        "cert create N --role viewer --replace --out D",
        "authority show -o json",
        "authority replace --compromised",
        "authority finish --force --yes",
        "token revoke X",
        "status -o json",
        "doctor --addr unix:///a,https://b:1 --certs C",
        "node show N",
        "node label N k=v old-",
        "node uncordon N",
        "image import I --kernel K --initrd R --cmdline S --disk D --ready-line L --boot-timeout 5s",
        "image import I --disk D",
        "vm create V --image I --cpus 1 --memory 256M --disk 2G --node N --label k=v --label l=w --wait",
        "vm create V --image I --accel tcg --cpu-model max --cmdline quiet --request-id abc",
        "vm create V --image I --network none",
        "vm create V --image I --network user --no-egress --publish 80 443 --publish 8080,9090 --allow-self-fork 39",
        "vm create V --image I --unready hold",
        "image import I --disk D --guest-agent qemu",
        "vm wait V --for running",
        "vm wait V --for exit --timeout 1h",
        "vm wait V --for port:80",
        "vm create V --image I --snapshot-every 5m --keep 3 --replicas 2 --ttl 1h",
        "vm protect V --snapshot-every off",
        "vm protect V --snapshot-every 10s --keep 1",
        "vm protect V --ha restore",
        "vm protect V --ha off --snapshot-every off",
        "vm create V --image I --ha restore",
        "snapshot create V S --replicas 2 --wait",
        "snapshot replicate V@S --replicas 3",
        "vm stop V --force",
        "vm rm V W X --force",
        "fork P -n 3 --name X --mode paused --paused --label a=b",
        "fork V@S",
        "fork V -n 6 --spread --where disk=ssd --where zone=west --apart-from db --apart-from app=web",
        "vm create V --image I --where disk=ssd --apart-from db",
        "fork P --set role=worker --set x= --secret token=@token.txt --secret key=@-",
        "snapshot create V",
        "snapshot create V S --mode live",
        "snapshot tag S N",
        "tree V -o yaml",
        "share image I --with everyone",
        "share snapshot S --with ann --stop",
        "share vm V --with ann --request-id x",
        "quota set O --vms 1 --cpus 2 --memory 3G --disk 4T --snapshots 5 --images 0",
        "quota show",
        "quota show O",
        "quota rm O",
        "cert create N --role operator --owner O",
        "vm create V --image I --owner O",
        "fork V --owner O",
        "snapshot create V S --owner O",
        "image import I --disk D --owner O",
        "op cancel O",
        "events -f --since oldest --vm V --kind vm.failed --kind node",
        "logs V -f",
        "console V --linger 3s",
        "cp a V:/b",
        "cp V:b -",
        "completion bash",
        "--timeout 5m -o wide vm ls",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for line in [
        "",
        "vm",
        "vm create V",
        "vm create V --image I --memory 0",
        "vm create V --image I --memory lots",
        "vm create V --image I --cpus 0",
        "vm create V --image I --label x",
        "vm create V --image I --publish 0",
        "vm create V --image I --publish 70000",
        "vm create V --image I --allow-self-fork 1001",
        "vm create V --image I --network bridge",
        "quota set O",
        "share V --with ann",
        "share node N --with ann",
        "vm protect V",
        "vm protect V --snapshot-every soon",
        "vm protect V --ha always",
        "vm protect V --ha restore --keep 3",
        "vm create V --image I --keep 3",
        "snapshot replicate S",
        "snapshot create V S --replicas 0",
        "vm wait V",
        "vm wait V --for port:0",
        "fork P --set role",
        "vm rm",
        "vm ls -o xml",
        "vm ls --addr http://x:1",
        "vm ls --timeout 0s",
        "vm pause V --request-id a/b",
        "fork",
        "fork P -n -1",
        "image import I",
        "image import I --disk D --initrd R",
        "node label N",
        "node label N x",
        "exec V true",
        "cp a",
        "cp a b c",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn labels() {
    assert_eq!(
        cluster::label_change("a=b-"),
        Ok(LabelChange::Set("a".into(), "b-".into()))
    );
    assert_eq!(
        cluster::label_change("a-"),
        Ok(LabelChange::Remove("a".into()))
    );
    assert_eq!(
        cluster::label_change("a="),
        Ok(LabelChange::Set("a".into(), String::new()))
    );
    assert!(cluster::label_change("-").is_err());
    assert!(cluster::label_change("=b").is_err());
}

#[test]
fn several_requests_of_one_command_have_an_id_each() {
    let change = Change {
        request_id: Some("x".to_owned()),
    };
    assert_eq!(
        [change.id_of(0, 1), change.id_of(0, 2), change.id_of(1, 2)],
        ["x", "x-0", "x-1"]
    );
}
