//! The rules of the code base that no compiler keeps: who may import whom, and
//! what goes into which program.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use raft_kv_tests::{files::files_below, workspace};
use toml::{Table, Value};

/// The crates, their folders, and which of ours they may depend on; tests and
/// benchmarks may depend on all.
const CRATES: [(&str, &str, &[&str]); 9] = [
    ("raft-kv-sdk", "sdk", &[]),
    ("raft-kv-proto", "proto", &[]),
    ("raft-lite", "raft-lite", &[]),
    ("raft-kv-client", "client", &["raft-kv-proto"]),
    ("raft-kv-plugin-kv", "plugins/kv", &["raft-kv-sdk"]),
    ("raft-kv-plugin-counter", "plugins/counter", &["raft-kv-sdk"]),
    ("raft-kv-plugin-ledger", "plugins/ledger", &["raft-kv-sdk"]),
    ("raft-kv-plugin-lock", "plugins/lock", &["raft-kv-sdk"]),
    ("raft-kv-plugin-queue", "plugins/queue", &["raft-kv-sdk"]),
];

/// The rooms of the host, from the socket to the disk, and which others each may
/// import from.
const ROOMS: [(&str, &[&str]); 11] = [
    ("api", &["service", "network"]),
    ("admin", &["service"]),
    ("service", &["machine", "meta", "storage", "wasm", "metrics", "network", "failpoint"]),
    ("machine", &["meta", "storage", "wasm"]),
    ("meta", &["storage"]),
    ("failpoint", &[]),
    ("storage", &[]),
    ("wasm", &[]),
    ("author", &["storage", "wasm"]),
    ("metrics", &[]),
    ("network", &["storage"]),
];

fn manifest(folder: &str) -> Table {
    let file = workspace().join(folder).join("Cargo.toml");
    fs::read_to_string(file).unwrap().parse().unwrap()
}

/// The names of a crate's dependencies, for tests left out.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let names = |table: &Table| {
        let tables = ["dependencies", "build-dependencies"].into_iter();
        let tables = tables.filter_map(|name| table.get(name)?.as_table());
        tables.flat_map(|table| table.keys().cloned()).collect::<Vec<_>>()
    };
    let mut found: BTreeSet<String> = names(manifest).into_iter().collect();
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        found.extend(targets.values().filter_map(Value::as_table).flat_map(names));
    }
    found
}

/// The names of our own crates.
fn ours() -> BTreeSet<String> {
    let root = manifest(".");
    let members = root["workspace"]["members"].as_array().unwrap();
    let name = |member: &Value| {
        let manifest = manifest(member.as_str().unwrap());
        manifest["package"]["name"].as_str().unwrap().to_owned()
    };
    members.iter().map(name).collect()
}

#[test]
fn crates_depend_only_on_those_they_may() {
    let ours = ours();
    for (name, folder, allowed) in CRATES {
        let manifest = manifest(folder);
        assert_eq!(manifest["package"]["name"].as_str(), Some(name));
        let dependencies = dependencies(&manifest);
        let wrong: Vec<&String> = dependencies
            .intersection(&ours)
            .filter(|dependency| !allowed.contains(&dependency.as_str()))
            .collect();
        assert!(wrong.is_empty(), "{name} may not depend on {wrong:?}");
    }
    for name in ["tonic", "tokio", "rocksdb", "wasmtime"] {
        assert!(!dependencies(&manifest("raft-lite")).contains(name), "raft-lite and {name}");
    }
}

/// Names that a piece of code takes from the root of its crate: what follows
/// `crate::`, also within braces, and as many `super::` as lead there.
fn taken_from_root(code: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ["crate::".to_owned(), "super::".repeat(depth)] {
        for (place, _) in code.match_indices(&root) {
            let before = code[..place].chars().next_back();
            let begins = !before.is_some_and(|c| c == ':' || c == '_' || c.is_alphanumeric());
            // `$crate` in a macro and longer chains of `super` are no roots of ours.
            if begins && before != Some('$') {
                found.extend(first_names(&code[place + root.len()..]));
            }
        }
    }
    // One step further up than the root is where a test module's chain begins.
    found.remove("super");
    found
}

/// The first name of a path, or of each path in braces.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim_start();
        let end = text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len());
        text[..end].to_owned()
    };
    let Some(braces) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let mut names = vec![name(braces)];
    let mut depth = 0;
    for (place, character) in braces.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&braces[place + 1..])),
            _ => {}
        }
    }
    names
}

/// A file without the lines that are comments.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn rooms_of_the_host_import_only_from_those_they_may() {
    let source = workspace().join("host/src");
    let files = files_below(&source).into_iter();
    let files: Vec<PathBuf> =
        files.filter(|file| file.extension() == Some("rs".as_ref())).collect();
    let rooms: BTreeSet<String> = files.iter().map(|file| room_of(file)).collect();
    let mut wrong = Vec::new();
    for file in &files {
        let room = room_of(file);
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            assert!(["lib", "bin", "node"].contains(&room.as_str()), "a new room: {room}");
            continue;
        };
        let depth = file.components().count();
        for taken in taken_from_root(&code_of(&source.join(file)), depth) {
            let other = taken != room && rooms.contains(&taken);
            if other && !allowed.contains(&taken.as_str()) {
                wrong.push(format!("{} imports from {taken}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The top module that a file belongs to.
fn room_of(file: &Path) -> String {
    let first = file.components().next().unwrap().as_os_str();
    Path::new(first).file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::{a::{b, c}, d, e::f};\nuse super::super::g;\ncrate::h::i();\n\
                use super::j;\nuse $crate::k;\nuse super::super::super::l;\nmy_crate::m;";
    let found = taken_from_root(code, 2);
    assert_eq!(found, ["a", "d", "e", "g", "h"].map(str::to_owned).into());
}

#[test]
fn only_the_programs_and_the_tests_use_anyhow() {
    for (name, folder, _) in CRATES {
        assert!(!dependencies(&manifest(folder)).contains("anyhow"), "{name} and anyhow");
    }
}

/// Each package of the lock file: its versions, and the names it depends on.
fn locked() -> BTreeMap<String, (Vec<String>, BTreeSet<String>)> {
    let lock: Table = fs::read_to_string(workspace().join("Cargo.lock")).unwrap().parse().unwrap();
    let mut packages: BTreeMap<String, (Vec<String>, BTreeSet<String>)> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap().to_owned();
        let (versions, needs) = packages.entry(name).or_default();
        versions.push(package["version"].as_str().unwrap().to_owned());
        if let Some(dependencies) = package.get("dependencies").and_then(Value::as_array) {
            let names = dependencies.iter().map(|d| d.as_str().unwrap());
            // A version follows the name where there is more than one.
            needs.extend(names.map(|d| d.split(' ').next().unwrap().to_owned()));
        }
    }
    packages
}

#[test]
fn the_large_dependencies_come_in_one_version() {
    let packages = locked();
    for name in [
        "wasmtime",
        "wasmtime-environ",
        "tonic",
        "prost",
        "hyper",
        "h2",
        "http",
        "axum",
        "tower",
        "tokio",
        "bytes",
        "rocksdb",
        "raft",
        "raft-engine",
        "protobuf",
    ] {
        let (versions, _) = packages.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

/// All that a package depends on, directly or not; what only its own tests need
/// is among it.
fn closure(
    packages: &BTreeMap<String, (Vec<String>, BTreeSet<String>)>,
    name: &str,
) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(next) = open.pop() {
        for need in &packages[&next].1 {
            if found.insert(need.clone()) {
                open.push(need.clone());
            }
        }
    }
    found
}

#[test]
fn light_crates_link_no_heavy_ones() {
    let packages = locked();
    let host = closure(&packages, "raft-kv");
    for (name, heavy) in [
        (
            "raft-kv-client",
            ["rocksdb", "librocksdb-sys", "wasmtime", "raft-engine", "raft"].as_slice(),
        ),
        ("raft-kv-proto", &["rocksdb", "wasmtime", "raft"]),
        ("raft-kv-sdk", &["rocksdb", "wasmtime", "tokio", "tonic"]),
        ("raft-lite", &["rocksdb", "librocksdb-sys", "wasmtime", "tonic", "tokio", "axum"]),
    ] {
        let all = closure(&packages, name);
        for heavy in heavy {
            assert!(host.contains(*heavy), "nobody has {heavy}");
            assert!(!all.contains(*heavy), "{name} depends on {heavy}");
        }
    }
}
