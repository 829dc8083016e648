//! How a time to live is written where it is text: on the command line and in HTTP.

use std::time::Duration;

/// Why a text is no time to live.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a time to live: write a whole number above 0 and its unit, ms, s, m, h or d, \
     such as 30s"
)]
pub struct InvalidTtl {
    text: String,
}

/// Reads a whole number and its unit, `ms`, `s`, `m`, `h` or `d`, such as `30s`.
///
/// # Errors
/// If it is something else, zero, or too long to be counted in milliseconds.
pub fn parse_ttl(text: &str) -> Result<Duration, InvalidTtl> {
    let invalid = || InvalidTtl { text: text.to_owned() };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(invalid()),
    };
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let ttl_ms = number.checked_mul(unit_ms).filter(|ttl_ms| *ttl_ms > 0);
    ttl_ms.map(Duration::from_millis).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_a_unit() {
        let read = |text| parse_ttl(text).map(|ttl| ttl.as_millis());
        assert_eq!(read("1ms"), Ok(1));
        assert_eq!(read("30s"), Ok(30_000));
        assert_eq!(read("5m"), Ok(300_000));
        assert_eq!(read("2h"), Ok(7_200_000));
        assert_eq!(read("1d"), Ok(86_400_000));
    }

    #[test]
    fn what_is_no_time_to_live_is_refused_with_an_example() {
        let texts = ["", "30", "s", "0s", "-1s", "1.5s", " 1s", "1 s", "1S", "1w", "1sm"];
        for text in texts.into_iter().chain(["99999999999999999999s", "18446744073709551615d"]) {
            let error = parse_ttl(text).unwrap_err().to_string();
            assert!(error.contains("30s") && error.contains(text), "{text}: {error}");
        }
    }
}
