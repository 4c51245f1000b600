//! The guest's users, from `/etc/passwd` and `/etc/group` (passwd(5), group(5)): the agent is linked statically and asks no name
//! service.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::fchown,
    process::Command,
};

use super::kernel;

/// Who a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its home.
    pub home: String,
    /// Its shell.
    pub shell: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl User {
    /// By name or number; root when that is empty. Root is there where no file says so.
    ///
    /// # Errors
    /// There is no such user.
    pub fn find(name: &str) -> Result<Self, String> {
        let name = if name.is_empty() { "root" } else { name };
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        parse(&passwd, &group, name)
            .or_else(|| (name == "root").then(root))
            .ok_or_else(|| format!("there is no user {name:?} in the guest"))
    }

    /// Has a program run as it.
    pub fn apply(&self, command: &mut Command) {
        if self.uid == 0 && self.gid == 0 {
            return;
        }
        kernel::with_user(command, self.uid, self.gid, self.groups.clone());
    }

    /// Makes a file its own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn own(&self, file: &File) -> io::Result<()> {
        fchown(file, Some(self.uid), Some(self.gid))
    }
}

fn root() -> User {
    User {
        name: "root".to_owned(),
        home: "/".to_owned(),
        shell: "/bin/sh".to_owned(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

fn parse(passwd: &str, group: &str, wanted: &str) -> Option<User> {
    let fields = |line: &str| -> Option<User> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let or = |value: &str, otherwise: &str| match value {
            "" => otherwise.to_owned(),
            value => value.to_owned(),
        };
        Some(User {
            name: name.to_owned(),
            home: or(home, "/"),
            shell: or(shell, "/bin/sh"),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            groups: Vec::new(),
        })
    };
    let users = || passwd.lines().filter_map(fields);
    let by_number = || {
        let uid: u32 = wanted.parse().ok()?;
        users().find(|user| user.uid == uid)
    };
    let mut user = users()
        .find(|user| user.name == wanted)
        .or_else(by_number)?;
    user.groups = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [_, _, gid, members] = fields[..] else {
                return None;
            };
            let is_member = members.split(',').any(|member| member == user.name);
            is_member.then(|| gid.parse().ok())?
        })
        .collect();
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1001::/home/ann:\nbroken\n";
    const GROUP: &str = "root:x:0:\nann:x:1001:\naudio:x:29:bob,ann\nwheel:x:10:bob\n";

    #[test]
    fn a_user_is_found_by_name_and_number_with_its_groups() {
        let ann = parse(PASSWD, GROUP, "ann").unwrap();
        assert_eq!(parse(PASSWD, GROUP, "1000").unwrap(), ann);
        assert_eq!((ann.uid, ann.gid, ann.groups), (1000, 1001, vec![29]));
        assert_eq!(
            (ann.home.as_str(), ann.shell.as_str()),
            ("/home/ann", "/bin/sh")
        );
        assert_eq!(parse(PASSWD, GROUP, "bob"), None);
    }
}
