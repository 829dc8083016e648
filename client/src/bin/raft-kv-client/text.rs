//! Answers for people.

pub mod cluster;
pub mod plugin;

use std::fmt::Write;

use raft_kv_client::{ShardStatus, SlotRange, StatusResponse};

/// The columns of the table of shards.
const COLUMNS: [&str; 8] =
    ["SHARD", "SLOTS", "LEADER", "ROLE", "TERM", "COMMIT", "APPLIED", "PLUGIN"];

/// Bytes as text that is on one line, free of control characters, and different
/// for different bytes: a backslash begins an escape, as in Rust.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' | '\t' | '\r' | '\n' => text.extend(character.escape_default()),
                _ if character.is_control() => {
                    let mut buffer = [0; 4];
                    let bytes = character.encode_utf8(&mut buffer).bytes();
                    bytes.for_each(|byte| escape_byte(&mut text, byte));
                }
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            escape_byte(&mut text, *byte);
        }
    }
    text
}

/// Reads [`escape`]; `None` if a backslash begins no escape.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    while let Some(part) = parts.next() {
        let rest = match part.as_bytes() {
            // Two backslashes: what lies between them is nothing.
            [] => {
                bytes.push(b'\\');
                parts.next()?.as_bytes()
            }
            [b't', rest @ ..] => push(&mut bytes, b'\t', rest),
            [b'r', rest @ ..] => push(&mut bytes, b'\r', rest),
            [b'n', rest @ ..] => push(&mut bytes, b'\n', rest),
            [b'x', high, low, rest @ ..] => {
                bytes.extend(from_hex(&[*high, *low])?);
                rest
            }
            _ => return None,
        };
        bytes.extend_from_slice(rest);
    }
    Some(bytes)
}

fn push<'a>(bytes: &mut Vec<u8>, byte: u8, rest: &'a [u8]) -> &'a [u8] {
    bytes.push(byte);
    rest
}

fn escape_byte(text: &mut String, byte: u8) {
    text.push_str("\\x");
    push_hex(text, byte);
}

fn push_hex(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push(DIGITS[usize::from(byte >> 4)].into());
    text.push(DIGITS[usize::from(byte & 15)].into());
}

/// Two hexadecimal digits for each byte.
pub fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    bytes.iter().for_each(|byte| push_hex(&mut text, *byte));
    text
}

/// Reads [`to_hex`], in either case; `None` if it is not hexadecimal.
pub fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let (pairs, []) = text.as_chunks::<2>() else {
        return None;
    };
    pairs.iter().map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()).collect()
}

/// What a node knows, as a few lines and a table of its shards.
pub fn status(status: &StatusResponse) -> String {
    let mut rows = vec![
        ["node", &status.node_id].map(str::to_owned),
        ["cluster", &status.cluster_id].map(str::to_owned),
        ["address", &status.address].map(str::to_owned),
        ["version", &status.version].map(str::to_owned),
        ["uptime".to_owned(), time(status.uptime_seconds)],
        ["slots".to_owned(), status.slots.to_string()],
        ["disk".to_owned(), size(status.disk_usage_bytes)],
    ];
    rows.retain(|[_, value]| !value.is_empty());
    let mut text = table(&rows);

    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(status.shards.iter().map(shard_row));
    text.push('\n');
    text.push_str(&table(&rows));

    for shard in status.shards.iter().filter(|shard| !shard.reason.is_empty()) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} does not serve: {}", shard.name, shard.reason);
    }
    text
}

fn shard_row(shard: &ShardStatus) -> [String; COLUMNS.len()] {
    let plugin = shard.plugin.as_ref();
    let plugin = plugin.map(|plugin| format!("{} {}", plugin.name, plugin.version));
    [
        shard.name.clone(),
        or_dash(slots(&shard.slots)),
        or_dash(shard.leader.clone()),
        or_dash(shard.role.clone()),
        shard.term.to_string(),
        shard.commit_index.to_string(),
        shard.applied_index.to_string(),
        or_dash(plugin.unwrap_or_default()),
    ]
}

/// Ranges of slots, each by its first and last one.
fn slots(slots: &[SlotRange]) -> String {
    let ranges = slots.iter().map(|range| {
        let last = range.end.saturating_sub(1);
        match range.start == last {
            true => last.to_string(),
            false => format!("{}-{last}", range.start),
        }
    });
    ranges.collect::<Vec<_>>().join(",")
}

/// `on` or `off`.
pub fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn or_dash(text: String) -> String {
    match text.is_empty() {
        true => "-".to_owned(),
        false => text,
    }
}

/// A number of bytes in the largest binary unit that leaves it above 1.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{scaled:.1} {unit}"),
    }
}

/// A number of seconds in its two largest units.
fn time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Rows as lines, with columns aligned on the left and two spaces between.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_is_printable_and_unambiguous() {
        assert_eq!(escape("plain ü 😀".as_bytes()), "plain ü 😀");
        assert_eq!(escape(b"a\tb\nc\\x00"), "a\\tb\\nc\\\\x00");
        assert_eq!(escape(b"\0\x7f\xff\xc3"), "\\x00\\x7f\\xff\\xc3");
        assert_eq!(escape("\u{85}".as_bytes()), "\\xc2\\x85");
    }

    #[test]
    fn what_was_escaped_reads_back_and_other_escapes_do_not() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        for bytes in [&b""[..], b"\\", b"\\\\x41", b"a\tb\nc\\x00", "\u{85}\u{fc}".as_bytes(), &all]
        {
            assert_eq!(unescape(&escape(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!(unescape("a\\x20b\\x5C").as_deref(), Some(&b"a b\\"[..]));
        for text in ["\\", "a\\", "\\a", "\\x", "\\x4", "\\xg0", "\\\\\\"] {
            assert_eq!(unescape(text), None, "{text}");
        }
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(to_hex(&[0, 0xab, 0xff]), "00abff");
        assert_eq!(from_hex(b"00ABff"), Some(vec![0, 0xab, 0xff]));
        assert_eq!(from_hex(b""), Some(vec![]));
        for text in ["0", "0g", "0x00", "00 1", "+1"] {
            assert_eq!(from_hex(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(time(59), "59 s");
        assert_eq!(time(125), "2 min 5 s");
        assert_eq!(time(7260), "2 h 1 min");
        assert_eq!(time(90000), "1 d 1 h");
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 40), "3.0 TiB");
    }
}
