//! Sizes and times as people write and read them. Used by the arguments and the tables.

use std::time::Duration;

/// Reads a size: a number of bytes, or one with K, M, G or T (powers of 1,024), such as `256M`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size such as 256M or 2G");
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is too large"))
}

/// Reads a time: a number with `ms`, `s`, `m`, `h` or `d`, such as `30s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 30s, 5m or 1h");
    let end = text
        .bytes()
        .position(|byte| !byte.is_ascii_digit())
        .ok_or_else(wrong)?;
    let number: u64 = text[..end].parse().map_err(|_| wrong())?;
    let milliseconds: u64 = match &text[end..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let milliseconds = number
        .checked_mul(milliseconds)
        .filter(|&all| all <= 366 * 86_400_000);
    milliseconds
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is longer than a year"))
}

/// Reads an amount of processor time: `50%` of a processor, or a number of processors such as `2` or `1.5`. In percent of
/// one.
pub fn parse_processors(text: &str) -> Result<u32, String> {
    let wrong = || {
        format!("{text:?} is neither a part of a processor such as 50% nor a number such as 1.5")
    };
    let digits = |text: &str| {
        let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| text.parse::<u32>().ok()).flatten()
    };
    let percent = if let Some(percent) = text.strip_suffix('%') {
        digits(percent).ok_or_else(wrong)?
    } else {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let hundredths = match part.len() {
            1 => digits(part).map(|tenths| tenths * 10),
            2 => digits(part),
            _ => None,
        };
        digits(whole)
            .and_then(|whole| whole.checked_mul(100)?.checked_add(hundredths?))
            .ok_or_else(wrong)?
    };
    if percent == 0 {
        return Err(format!("{text:?} is nothing: at least 1% is needed"));
    }
    Ok(percent)
}

/// A size for a table: `256M`, `1.5G`, `12K`, `300`.
pub fn show_size(bytes: u64) -> String {
    let units = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
    let Some((shift, letter)) = units.into_iter().find(|&(shift, _)| bytes >= 1 << shift) else {
        return bytes.to_string();
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        rest if rest != 0 && tenths < 1_000 => format!("{}.{rest}{letter}", tenths / 10),
        _ => format!("{}{letter}", tenths / 10),
    }
}

/// A time span for a table, in its largest unit: `42s`, `5m`, `3h`, `12d`.
pub fn show_seconds(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors() {
        for (text, percent) in [
            ("50%", 50),
            ("150%", 150),
            ("1", 100),
            ("1.5", 150),
            ("0.25", 25),
            ("16", 1600),
        ] {
            assert_eq!(parse_processors(text), Ok(percent), "{text}");
        }
        for text in [
            "",
            "%",
            "0",
            "0%",
            "0.0",
            "-1",
            "1.",
            ".5",
            "1.505",
            "1,5",
            "50 %",
            "x",
            "99999999999",
        ] {
            assert!(parse_processors(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        let right = [
            ("0", 0),
            ("4096", 4096),
            ("256M", 256 << 20),
            ("2G", 2 << 30),
            ("1k", 1024),
            ("3T", 3 << 40),
        ];
        for (text, bytes) in right {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "-1M",
            "+1M",
            "1.5G",
            "1 G",
            "1GB",
            "x",
            "１M",
            "99999999999T",
            "99999999999999999999",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        let right = [
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("250ms", 250),
            ("2d", 172_800_000),
        ];
        for (text, milliseconds) in right {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1.5h",
            "5 m",
            "9y",
            "1000d",
            "99999999999999999999s",
            "99999999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown() {
        let sizes = [
            (0, "0"),
            (1023, "1023"),
            (1 << 10, "1K"),
            (256 << 20, "256M"),
            (3 << 29, "1.5G"),
            (u64::MAX, "16777215T"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(show_size(bytes), text);
        }
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_200, "2h"),
            (172_800, "2d"),
        ] {
            assert_eq!(show_seconds(seconds), text);
        }
    }
}
