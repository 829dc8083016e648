//! The author's side: `raft-kv-plugin` makes, builds and tries plugins.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::Path, process::Command};

use raft_kv_tests::{binary, workspace};

/// Exit code, stdout and stderr of a run in `folder`.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary("raft-kv-plugin"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_new_project_builds_and_its_module_passes() {
    let folder = tempfile::tempdir().unwrap();
    let (code, said, error) = run(folder.path(), &["new", "my-counter"]);
    assert_eq!(code, 0, "{error}");
    assert!(said.contains("cd my-counter"), "{said}");
    let project = folder.path().join("my-counter");
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&project).args(arguments).arg("--offline");
        command.arg("--target-dir").arg(folder.path().join("target"));
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (passes, said) = cargo(&["test"]);
    assert!(passes && said.contains("what_fails_changes_nothing ... ok"), "{said}");

    let (code, said, error) = run(&project, &["build"]);
    if code == 3 {
        // Where there is no compiler for wasm32 it says how to get one.
        assert!(error.contains("rustup target add wasm32-unknown-unknown"), "{error}");
        assert!(error.contains("apt-get install rustc-web"), "{error}");
        return;
    }
    assert_eq!(code, 0, "{error}");
    assert!(said.contains("a node would take it"), "{said}");
    assert!(said.contains("plugin       my-counter 0.1.0"), "{said}");
    assert!(!said.contains("not told"), "the module carries the hash of its sources: {said}");
    let module = "target/my-counter.wasm";
    let (code, said, error) = run(&project, &["test", module]);
    assert_eq!(code, 0, "{error}");
    assert!(said.contains(r#""add 3"  answers "5"; writes "total""#), "{said}");
    let (code, said, error) = run(&project, &["test", module, "--determinism"]);
    assert_eq!(code, 0, "{error}");
    assert!(said.starts_with("6 commands (3 of them fail) came out the same in"), "{said}");
    // Its tests, natively and in the module; then as if the module were built of other sources.
    let compare = ["test", module, "--compare"];
    let (code, said, error) = run(&project, &compare);
    assert_eq!(code, 0, "{error}");
    assert!(said.contains("4 commands and 1 queries on 1 test hosts came out the same"), "{said}");
    let source = project.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text.replace("total.to_le_bytes()", "total.to_be_bytes()")).unwrap();
    let (code, _, error) = run(&project, &compare);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("the plugin's tests fail"), "{error}");
    fs::write(&source, text.replace("would be too large", "is too large")).unwrap();
    let (code, _, error) = run(&project, &compare);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("natively it fails: failed: the total is too large"), "{error}");
    assert!(
        error.contains("in the module it fails: failed: the total would be too large"),
        "{error}"
    );
    fs::write(&source, text).unwrap();
    let (code, _, error) = run(&project, &["test", module, "--compare", "--machine", "Other"]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("but of my_counter::Counter"), "{error}");
    let bench = ["bench", module, "--seconds", "1"];
    let (code, said, error) = run(&project, &bench);
    assert_eq!(code, 0, "{error}");
    assert!(said.contains("commands 64 at a time"), "{said}");
    assert!(said.contains("the rest is the host's"), "{said}");
    // The module says nothing of the machine it was built on.
    let bytes = fs::read(project.join(module)).unwrap();
    let path = project.canonicalize().unwrap().display().to_string();
    assert!(!bytes.windows(path.len()).any(|window| window == path.as_bytes()), "{path}");
}

#[test]
fn a_bench_tells_what_is_the_plugins_and_what_the_hosts() {
    let folder = tempfile::tempdir().unwrap();
    // Writes its command under itself, after a loop of as many rounds as the first byte says, twice.
    let slow = r#"(module (@custom "raftkv" "name=slow\nversion=0.1.0\nabi=1\n")
        (import "raftkv_v1" "next_command" (func $next (param i32 i32) (result i64)))
        (import "raftkv_v1" "put" (func $put (param i32 i32 i32 i32)))
        (memory (export "memory") 1)
        (func $spin (param $rounds i32)
          (loop $l (br_if $l (local.tee $rounds (i32.sub (local.get $rounds) (i32.const 1))))))
        (func $run (param $write i32) (local $len i32)
          (loop $pull
            (local.set $len (i32.wrap_i64 (call $next (i32.const 0) (i32.const 65536))))
            (if (i32.ge_s (local.get $len) (i32.const 0)) (then
              (call $spin (i32.mul (i32.load8_u (i32.const 0)) (i32.const 1000)))
              (if (local.get $write) (then
                (call $put (i32.const 0) (local.get $len) (i32.const 0) (local.get $len))))
              (br $pull)))))
        (func (export "apply") (call $run (i32.const 1)))
        (func (export "query") (call $run (i32.const 0))))"#;
    fs::write(folder.path().join("slow.wasm"), wat::parse_str(slow).unwrap()).unwrap();
    fs::write(folder.path().join("commands.txt"), "hex:01\nhex:0a61\nhex:0a62\n").unwrap();
    let bench = ["bench", "slow.wasm", "--seconds", "1", "--batch", "16", "--output", "json"];
    let (code, said, error) = run(folder.path(), &bench);
    assert_eq!(code, 0, "{error}");
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let fuel = |which: &str| report["fuel"][which].as_u64().unwrap();
    assert!((5_000..6_500).contains(&fuel("min")), "{report}");
    assert!(
        (50_000..51_500).contains(&fuel("median")) && fuel("median") == fuel("max"),
        "{report}"
    );
    assert!(report["bytes_written"].as_f64().unwrap() > 10.0, "{report}");
    assert_eq!(report["commands"][1]["batch"], 16);
    for speed in [&report["commands"][0], &report["commands"][1], &report["queries"]] {
        let of = |field: &str| speed[field].as_f64().unwrap();
        assert_eq!(of("failed"), 0.0, "{report}");
        // Thousands of rounds take longer than nothing.
        assert!(of("microseconds") > of("crossing_microseconds"), "{report}");
        assert!((of("per_second") * of("microseconds") - 1e6).abs() < 1.0, "{report}");
    }
    let (code, _, error) = run(folder.path(), &["bench", "slow.wasm", "--commands", "none.txt"]);
    assert!(code == 2 && error.contains("none.txt"), "{error}");
    let (code, ..) = run(folder.path(), &["bench", "slow.wasm", "--batch", "1"]);
    assert_eq!(code, 2);
}

#[test]
fn what_a_node_would_refuse_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let module = fs::read(workspace().join("plugins/dist/kv.wasm")).unwrap();
    file("kv.wasm", &module);
    file("cut.wasm", &module[..module.len() / 2]);
    let wasi = r#"(module (@custom "raftkv" "name=x\nversion=0.1.0\nabi=1\n")
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (func (export "apply")) (func (export "query")))"#;
    file("wasi.wasm", &wat::parse_str(wasi).unwrap());
    file("bare.wasm", &wat::parse_str("(module)").unwrap());
    let (code, said, _) = run(folder.path(), &["check", "kv.wasm"]);
    assert_eq!(code, 0);
    assert!(said.contains("kv.wasm: a node would take it"), "{said}");
    for (name, code, reason) in [
        ("cut.wasm", 1, "was the upload cut short?"),
        ("wasi.wasm", 1, "wasi_snapshot_preview1.fd_write"),
        ("bare.wasm", 1, "no custom section `raftkv`"),
        ("absent.wasm", 2, "cannot read the module absent.wasm"),
    ] {
        let (found, _, error) = run(folder.path(), &["check", name]);
        assert_eq!(found, code, "{name}: {error}");
        assert!(error.contains(reason), "{name}: {error}");
    }
}

#[test]
fn what_is_asked_wrongly_is_told_and_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = ["new", "fine", "--sdk", "/nowhere"];
    for (arguments, reason) in [
        (&["new", "Not/a/name"][..], "cannot be the name of a plugin"),
        (&elsewhere[..], "say where it is with --sdk"),
        (&["build"][..], "holds no Cargo.toml"),
        (&["test", "x.wasm"][..], "cannot read the module"),
    ] {
        let (code, _, error) = run(folder.path(), arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let (code, ..) = run(folder.path(), &["new", "twice"]);
    assert_eq!(code, 0);
    let (code, _, error) = run(folder.path(), &["new", "twice"]);
    assert!(code == 2 && error.contains("is there already"), "{error}");
}
