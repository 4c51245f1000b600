//! How names and addresses are written. Used by the client before it asks, and by whoever prepares a node.

/// A name or an address that is not written as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not `[a-z0-9][a-z0-9-]{0,62}`.
    #[error("{0:?} is not a name: use up to 63 of a-z, 0-9 and '-', the first one not a '-'")]
    Name(String),
    /// Not HOST:PORT.
    #[error("{0:?} is not HOST:PORT, such as 10.0.0.5:7400, [fd00::5]:7400 or host-a.example:7400")]
    Address(String),
    /// An address that nobody can dial.
    #[error(
        "{0:?} cannot be dialled by other nodes: give the host's own address with --advertise HOST:PORT"
    )]
    Unspecified(String),
}

/// Checks that a name is `[a-z0-9][a-z0-9-]{0,62}`.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let right = (1..=63).contains(&bytes.len())
        && letter(bytes[0])
        && bytes.iter().all(|&byte| letter(byte) || byte == b'-');
    if right {
        Ok(())
    } else {
        Err(NameError::Name(shorten(name)))
    }
}

/// Checks that an address is HOST:PORT, with a port other than 0. An IPv6 host stands in brackets.
pub fn check_address(address: &str) -> Result<(), NameError> {
    split_address(address).map(|_| ())
}

/// Checks an address that other nodes are to dial: HOST:PORT, and not `0.0.0.0` or `[::]`.
pub fn check_advertised(address: &str) -> Result<(), NameError> {
    let (host, _) = split_address(address)?;
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Err(NameError::Unspecified(address.to_owned())),
        _ => Ok(()),
    }
}

/// Splits HOST:PORT; the host without brackets.
pub fn split_address(address: &str) -> Result<(&str, u16), NameError> {
    let wrong = || NameError::Address(shorten(address));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if port == 0 {
        return Err(wrong());
    }
    if let Some(v6) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        v6.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        return Ok((v6, port));
    }
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_';
    let right = (1..=253).contains(&host.len()) && host.bytes().all(plain);
    if right {
        Ok((host, port))
    } else {
        Err(wrong())
    }
}

/// So that a message stays one readable line whatever was typed.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "0", "vm-1", "a-", &"x".repeat(63)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "-a",
            "A",
            "a_b",
            "a/b",
            "../a",
            "a,b",
            "a\nb",
            "ä",
            "a b",
            &"x".repeat(64),
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        let long = check_name(&"y".repeat(5_000)).unwrap_err().to_string();
        assert!(long.len() < 250, "{long}");
    }

    #[test]
    fn addresses() {
        assert_eq!(split_address("127.0.0.1:7400"), Ok(("127.0.0.1", 7400)));
        assert_eq!(split_address("[::1]:1"), Ok(("::1", 1)));
        assert_eq!(
            split_address("host-a.example:65535"),
            Ok(("host-a.example", 65535))
        );
        for address in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:65536",
            "::1:80",
            "[::1",
            "[x]:1",
            "a b:1",
            "a/b:1",
            "a,b:1",
        ] {
            assert!(check_address(address).is_err(), "{address:?}");
        }
        assert!(check_advertised("0.0.0.0:1").is_err());
        assert!(check_advertised("[::]:1").is_err());
        assert_eq!(check_advertised("10.0.0.1:1"), Ok(()));
    }
}
