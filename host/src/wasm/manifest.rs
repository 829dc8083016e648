//! The custom section `raftkv`: what a plugin says about itself.

use super::abi;
use super::check::shown;
use super::error::ModuleError;

const MAX_NAME_CHARS: usize = 64;
const MAX_VERSION_CHARS: usize = 64;

/// The contents of the section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// 1–64 characters of `a-z`, `0-9`, `-`, `_`.
    pub name: String,
    /// A semantic version.
    pub version: String,
    /// SHA-256 of the sources the module was built from, if it says so.
    pub source_hash: Option<[u8; 32]>,
}

impl Manifest {
    /// Reads the section's bytes. Keys that ABI 1 does not know are left alone.
    pub(super) fn parse(section: &[u8]) -> Result<Manifest, ModuleError> {
        let text = std::str::from_utf8(section).map_err(|_| wrong("it is not UTF-8 text"))?;
        let fields = Fields::parse(text)?;
        // First, because another ABI may well have other rules for the rest.
        let abi = fields.need("abi")?;
        if abi != abi::ABI_VERSION {
            return Err(ModuleError::Abi { found: shown(abi) });
        }
        let name = fields.need("name")?;
        check_name(name)?;
        let version = fields.need("version")?;
        check_version(version)?;
        let source_hash = fields.get("source-hash").map(parse_hash).transpose()?;
        Ok(Manifest { name: name.to_owned(), version: version.to_owned(), source_hash })
    }
}

/// The section's lines, in order.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn parse(text: &'a str) -> Result<Fields<'a>, ModuleError> {
        let Some(lines) = text.strip_suffix('\n') else {
            return Err(wrong("its last line does not end in a line feed"));
        };
        let mut fields = Fields(Vec::new());
        for line in lines.split('\n') {
            let Some((key, value)) = line.split_once('=') else {
                let line = shown(line);
                return Err(wrong(format!("the line {line:?} is not `key=value`")));
            };
            if fields.get(key).is_some() {
                let key = shown(key);
                return Err(wrong(format!(
                    "`{key}` occurs twice; are two plugins linked into one module?"
                )));
            }
            fields.0.push((key, value));
        }
        Ok(fields)
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|field| field.0 == key).map(|field| field.1)
    }

    fn need(&self, key: &str) -> Result<&'a str, ModuleError> {
        self.get(key).ok_or_else(|| wrong(format!("the line `{key}=` is missing")))
    }
}

fn wrong(problem: impl Into<String>) -> ModuleError {
    ModuleError::Manifest(problem.into())
}

/// Whether a plugin may be called so.
pub fn is_plugin_name(name: &str) -> bool {
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_');
    (1..=MAX_NAME_CHARS).contains(&name.len()) && name.chars().all(allowed)
}

fn check_name(name: &str) -> Result<(), ModuleError> {
    if is_plugin_name(name) {
        return Ok(());
    }
    let name = shown(name);
    Err(wrong(format!("the name {name:?} is not 1 to 64 characters of a-z, 0-9, - and _")))
}

/// `MAJOR.MINOR.PATCH`, then optionally `-pre.release` and `+build`, as semver.org has it.
fn check_version(version: &str) -> Result<(), ModuleError> {
    let (rest, build) = split_tail(version, '+');
    let (core, pre) = split_tail(rest, '-');
    let numbers: Vec<&str> = core.split('.').collect();
    let valid = version.len() <= MAX_VERSION_CHARS
        && numbers.len() == 3
        && numbers.iter().all(|number| is_number(number))
        && pre.is_none_or(|pre| identifiers(pre, true))
        && build.is_none_or(|build| identifiers(build, false));
    if valid {
        return Ok(());
    }
    let version = shown(version);
    Err(wrong(format!("the version {version:?} is not a semantic version such as 1.2.3")))
}

fn split_tail(text: &str, mark: char) -> (&str, Option<&str>) {
    text.split_once(mark).map_or((text, None), |(head, tail)| (head, Some(tail)))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_number(text: &str) -> bool {
    is_digits(text) && (text == "0" || !text.starts_with('0'))
}

fn identifiers(text: &str, numbers_are_strict: bool) -> bool {
    text.split('.').all(|part| {
        let legal =
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        legal && (!numbers_are_strict || !is_digits(part) || is_number(part))
    })
}

fn parse_hash(hex: &str) -> Result<[u8; 32], ModuleError> {
    let malformed = || wrong("`source-hash` is not 64 hexadecimal digits");
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(malformed());
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).map_err(|_| malformed())?;
    }
    Ok(hash)
}
