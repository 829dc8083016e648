//! The committed module `plugins/dist/kv.wasm` against the sources it was built from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const ADVICE: &str = "run `make plugins` and commit plugins/dist/kv.wasm";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn committed_module() -> Vec<u8> {
    let path = root().join("plugins/dist/kv.wasm");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; {ADVICE}", path.display()))
}

/// Takes an unsigned LEB128 number off the front of `bytes`.
fn take_number(bytes: &mut &[u8]) -> usize {
    let mut number = 0;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("the module is whole");
        *bytes = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// Takes a vector of bytes off the front of `bytes`.
fn take_bytes<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let len = take_number(bytes);
    let (taken, rest) = bytes.split_at(len);
    *bytes = rest;
    taken
}

/// The content of the one custom section called `raftkv`.
fn section(module: &[u8]) -> String {
    let mut rest = module.strip_prefix(b"\0asm\x01\0\0\0").expect("a module of version 1");
    let mut found = Vec::new();
    while let Some((id, after)) = rest.split_first() {
        rest = after;
        let mut content = take_bytes(&mut rest);
        if *id == 0 && take_bytes(&mut content) == b"raftkv" {
            found.push(String::from_utf8(content.to_vec()).expect("the section is UTF-8"));
        }
    }
    assert_eq!(found.len(), 1, "a plugin has one section `raftkv`");
    found.remove(0)
}

fn facts(section: &str) -> BTreeMap<&str, &str> {
    assert!(section.ends_with('\n'), "each line ends in a newline");
    section.lines().map(|line| line.split_once('=').expect("each line is key=value")).collect()
}

fn source_hash() -> String {
    let script = root().join("scripts/plugin-source-hash.sh");
    let output = Command::new(&script).output().expect("the script can be run");
    assert!(output.status.success(), "{}: {}", script.display(), output.status);
    String::from_utf8(output.stdout).expect("a hash is text").trim().to_owned()
}

#[test]
fn the_committed_module_is_built_from_these_sources() {
    let module = committed_module();
    let section = section(&module);
    let built_from = facts(&section).get("source-hash").copied().unwrap_or("unknown sources");
    assert_eq!(built_from, source_hash(), "the module is out of date: {ADVICE}");
}

#[test]
fn the_committed_module_says_what_it_is() {
    let module = committed_module();
    let section = section(&module);
    let facts = facts(&section);
    assert_eq!(facts.get("name"), Some(&"kv"));
    assert_eq!(facts.get("version"), Some(&env!("CARGO_PKG_VERSION")), "{ADVICE}");
    assert_eq!(facts.get("abi"), Some(&"1"));
}
