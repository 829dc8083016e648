//! Files of commands, for trying a plugin: one command a line.

use std::{fs, path::Path};

use bytes::Bytes;

/// Why a file of commands cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CommandsError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not a command.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: String,
        /// Which line, from 1.
        line: usize,
        /// What is the matter with it.
        problem: &'static str,
    },
    /// There are none.
    #[error(
        "{path} holds no command: write one a line, as text or as hex:00ff; lines that begin with \
         # are left out"
    )]
    Empty {
        /// The file.
        path: String,
    },
}

/// Reads a file of commands: the text of each line, or the bytes after `hex:`. Empty lines and
/// those that begin with `#` are left out.
///
/// # Errors
/// If the file cannot be read, a line is wrong, or there is no command.
pub fn read(path: &Path) -> Result<Vec<Bytes>, CommandsError> {
    let shown = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|source| CommandsError::Read { path: shown.clone(), source })?;
    let mut commands = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim_end();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let command = match text.strip_prefix("hex:") {
            Some(digits) => bytes_of(digits.trim()).ok_or(CommandsError::Line {
                path: shown.clone(),
                line,
                problem: "after hex: come pairs of the digits 0-9 and a-f",
            })?,
            None => text.as_bytes().to_vec(),
        };
        commands.push(command.into());
    }
    match commands.is_empty() {
        true => Err(CommandsError::Empty { path: shown }),
        false => Ok(commands),
    }
}

pub(super) fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let digit = |digit: &u8| char::from(*digit).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    digits.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Bytes>, CommandsError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("commands.txt");
        fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn a_line_is_a_command_as_text_or_in_hex() {
        let commands = read_text("# first\nadd 2\n\nhex:00fF\nhex:\n").unwrap();
        assert_eq!(commands, [&b"add 2"[..], &[0, 255], b""]);
    }

    #[test]
    fn what_is_no_command_is_told_with_its_line() {
        let error = read_text("a\nhex:0").unwrap_err().to_string();
        assert!(error.contains("line 2: after hex:"), "{error}");
        assert!(read_text("hex:zz").is_err());
        let error = read_text("# nothing\n").unwrap_err().to_string();
        assert!(error.contains("holds no command"), "{error}");
        assert!(matches!(read(Path::new("/nowhere/x")), Err(CommandsError::Read { .. })));
    }
}
