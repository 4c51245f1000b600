//! Any text for a join token, and texts that are almost one: what is taken for a token is what was made, to the last bit, and says where
//! to go in a form that can be dialled.

use agent::trust::{names, token::JoinToken};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::{input::Input, memory};

const PREFIX: &str = "fpjoin1.";
/// Longer ones are refused before they are looked at.
const LONGEST: usize = 8_192;
/// What addresses are made of, and what they are not.
const ADDRESS: &[u8] = b"a1.:[]-,%/ \n\0";
/// A text as it came, as bytes, as a token, and as its addresses: none of which is long.
const KEPT: isize = 16 * LONGEST as isize;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let text = match input.u8() % 4 {
        0 => String::from_utf8_lossy(input.bytes(usize::MAX)).into_owned(),
        1 => format!(
            "{PREFIX}{}",
            String::from_utf8_lossy(input.bytes(usize::MAX))
        ),
        _ => almost(&mut input),
    };
    let (read, peak) = memory::peak(|| text.parse::<JoinToken>());
    assert!(peak <= KEPT, "{peak} bytes for {}", text.len());
    let Ok(token) = read else { return };
    assert!(text.len() <= LONGEST);
    assert_eq!(token.to_text(), text.trim(), "it was taken for another");
    assert!(!token.addresses.is_empty());
    for address in &token.addresses {
        assert!(names::check_address(address).is_ok(), "{address:?}");
    }
    let shown = format!("{token:?}");
    assert!(!shown.contains("seed"), "{shown}");
    let cut = &text.trim()[..text.trim().len() - 1];
    assert!(cut.parse::<JoinToken>().is_err(), "cut off, it is one too");
}

/// A token whose sum is right, and perhaps one of whose bytes is changed then.
fn almost(input: &mut Input<'_>) -> String {
    let mut content = vec![input.u8(); 80];
    let (changed, by) = (input.below(256), input.u8());
    if input.u8().is_multiple_of(2) {
        content.extend_from_slice(b"a:1");
    }
    let length = input.length();
    let letters = input.bytes(length).iter();
    content.extend(letters.map(|byte| ADDRESS[usize::from(*byte) % ADDRESS.len()]));
    let sum = Sha256::digest([PREFIX.as_bytes(), &content].concat());
    if let Some(byte) = content.get_mut(changed) {
        *byte ^= by;
    }
    content.extend_from_slice(&sum[..8]);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(content))
}
