//! The network of a group of VMs. Who a member is on it follows from its number alone, and is the same in every copy of the group: so what its
//! guest has open to others goes on in each.

use std::net::Ipv4Addr;

/// What the hardware addresses of all members begin with: of those that anybody may give.
const MAC: [u8; 5] = [0x02, 0x66, 0x70, 0x67, 0x00];
/// The network, of those that are for private use: its members' numbers are the last byte.
const NETWORK: [u8; 3] = [10, 87, 0];
/// Bits of the network's prefix.
pub const PREFIX: u32 = 24;

/// A member's hardware address.
pub fn mac(number: u8) -> [u8; 6] {
    let [a, b, c, d, e] = MAC;
    [a, b, c, d, e, number]
}

/// A member's address.
pub fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, number)
}

/// The number of the member with a hardware address; `None` where it is no member's.
pub fn number_of(mac: [u8; 6]) -> Option<u8> {
    mac.starts_with(&MAC).then_some(mac[5])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_known_by_its_number() {
        assert_eq!(address(3).to_string(), "10.87.0.3");
        assert_eq!(number_of(mac(3)), Some(3));
        assert_eq!(number_of([0x02, 0x66, 0x70, 0x67, 0x01, 3]), None);
    }
}
