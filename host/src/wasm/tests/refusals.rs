//! Modules that must not get in, and what they are told.

use super::support::*;
use crate::wasm::{ModuleError, ModuleHash, PluginModule};

const EXPORTS: &str =
    r#"(memory (export "memory") 1) (func (export "apply")) (func (export "query"))"#;

fn compile(text: &str) -> Result<PluginModule, ModuleError> {
    PluginModule::compile(engine(), &wat::parse_str(text).unwrap())
}

/// The refusal's words.
fn refused(text: &str) -> String {
    compile(text).unwrap_err().to_string()
}

fn refused_with(fields: &str, words: &str) {
    let message = refused(&format!("(module {MANIFEST} {fields})"));
    assert!(message.contains(words), "{fields}: {message}");
}

#[test]
fn smallest_module_is_accepted() {
    let text = format!("(module {MANIFEST} {EXPORTS})");
    let module = compile(&text).unwrap();
    assert_eq!(module.info().manifest.name, "test");
    assert_eq!(module.info().manifest.version, "0.1.0");
    assert_eq!(module.info().initial_memory_bytes, 65_536);
    assert!(!module.info().has_migrate);
    assert_eq!(module.hash(), ModuleHash::of(&wat::parse_str(&text).unwrap()));
}

#[test]
fn garbage_is_refused() {
    let good = wat::parse_str(format!("(module {MANIFEST} {EXPORTS})")).unwrap();
    let compile = |bytes: &[u8]| PluginModule::compile(engine(), bytes);
    assert!(matches!(compile(b""), Err(ModuleError::Invalid(_))));
    assert!(matches!(compile(b"hello"), Err(ModuleError::Invalid(_))));
    assert!(matches!(compile(&[0; 100]), Err(ModuleError::Invalid(_))));
    for cut in 1..good.len() {
        assert!(compile(&good[..cut]).is_err(), "accepted when cut at {cut}");
    }
    let component = wat::parse_str("(component)").unwrap();
    assert!(matches!(compile(&component), Err(ModuleError::Component)));
    let large = vec![0; 16 * 1024 * 1024 + 1];
    assert!(matches!(compile(&large), Err(ModuleError::TooLarge { .. })));
}

#[test]
fn flipped_bytes_never_panic() {
    let good = wat::parse_str(format!("(module {MANIFEST} {IMPORTS} {EXPORTS})")).unwrap();
    for at in 0..good.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, good[at] ^ 1] {
            let mut bad = good.clone();
            bad[at] = value;
            let _ = crate::wasm::check_module(&bad);
        }
    }
}

#[test]
fn manifest_is_needed_and_checked() {
    let with =
        |section: &str| refused(&format!(r#"(module (@custom "raftkv" "{section}") {EXPORTS})"#));
    assert!(refused(&format!("(module {EXPORTS})")).contains("no custom section `raftkv`"));
    assert!(
        refused(&format!("(module {MANIFEST} {MANIFEST} {EXPORTS})")).contains("more than once")
    );
    assert!(with("name=a\\nversion=1.0.0\\nabi=2\\n").contains("ABI \"2\""));
    assert!(with("name=a\\nversion=1.0.0\\n").contains("`abi=` is missing"));
    assert!(with("version=1.0.0\\nabi=1\\n").contains("`name=` is missing"));
    assert!(with("name=a\\nabi=1\\n").contains("`version=` is missing"));
    assert!(with("name=a\\nversion=1.0.0\\nabi=1").contains("line feed"));
    assert!(with("").contains("line feed"));
    assert!(with("name=a\\n\\nabi=1\\n").contains("not `key=value`"));
    assert!(with("name=a\\nname=b\\nversion=1.0.0\\nabi=1\\n").contains("occurs twice"));
    assert!(with("\\ff\\n").contains("UTF-8"));
    for name in ["", "Name", "a b", "ä", &"a".repeat(65)] {
        assert!(
            with(&format!("name={name}\\nversion=1.0.0\\nabi=1\\n")).contains("the name"),
            "{name}"
        );
    }
    for version in ["", "1", "1.0", "1.0.0.0", "01.0.0", "1.0.x", "1.0.0-", "1.0.0-01", "1.0.0+"] {
        let message = with(&format!("name=a\\nversion={version}\\nabi=1\\n"));
        assert!(message.contains("the version"), "{version}: {message}");
    }
    for hash in ["", "12", &"g".repeat(64), &"ä".repeat(32)] {
        let message = with(&format!("name=a\\nversion=1.0.0\\nabi=1\\nsource-hash={hash}\\n"));
        assert!(message.contains("source-hash"), "{hash}: {message}");
    }
}

#[test]
fn manifest_may_have_all_of_semver_a_source_hash_and_unknown_keys() {
    let hash = "0a".repeat(32);
    let section = format!(
        "version=1.20.3-rc.1-x.0+b.01\\nlicense=MIT=or\\nname=a-b_9\\nsource-hash={hash}\\nabi=1\\n"
    );
    let module = compile(&format!(r#"(module (@custom "raftkv" "{section}") {EXPORTS})"#)).unwrap();
    assert_eq!(module.info().manifest.source_hash, Some([10; 32]));
    assert_eq!(module.info().manifest.version, "1.20.3-rc.1-x.0+b.01");
}

#[test]
fn imports_are_those_of_the_abi_with_its_types() {
    refused_with(
        &format!(r#"(import "wasi_snapshot_preview1" "fd_write" (func)) {EXPORTS}"#),
        "there is no WASI here",
    );
    refused_with(&format!(r#"(import "env" "abort" (func)) {EXPORTS}"#), "undefined symbol");
    refused_with(&format!(r#"(import "wbg" "now" (func)) {EXPORTS}"#), "wasm-bindgen");
    refused_with(
        &format!(r#"(import "raftkv_v1" "clock" (func)) {EXPORTS}"#),
        "ABI 1 does not have it",
    );
    refused_with(&format!(r#"(import "raftkv_v2" "get" (func)) {EXPORTS}"#), "`raftkv_v1`");
    refused_with(
        &format!(r#"(import "raftkv_v1" "get" (func (param i32))) {EXPORTS}"#),
        "(i32) -> (), the ABI says (i32, i32, i32, i32) -> (i64)",
    );
    refused_with(
        &format!(r#"(import "raftkv_v1" "get" (global i32)) {EXPORTS}"#),
        "not a function",
    );
    refused_with(
        r#"(memory (export "memory") (import "env" "memory") 1) (func (export "apply")) (func (export "query"))"#,
        "`env.memory`",
    );
}

#[test]
fn exports_are_needed_with_their_types() {
    refused_with("", "the export `apply` is missing");
    refused_with(r#"(func (export "apply"))"#, "the export `query` is missing");
    refused_with(r#"(func (export "apply")) (func (export "query"))"#, "`memory` is missing");
    refused_with(
        r#"(func (export "apply") (param i32)) (func (export "query")) (memory (export "memory") 1)"#,
        "`apply` has the type (i32) -> ()",
    );
    refused_with(r#"(global (export "apply") i32 (i32.const 0))"#, "`apply` is not a function");
    refused_with(
        &format!(r#"{EXPORTS} (func (export "migrate") (result i32) (i32.const 0))"#),
        "`migrate`",
    );
    refused_with(
        r#"(func (export "apply")) (func (export "query")) (func (export "memory"))"#,
        "`memory` is not a memory",
    );
}

#[test]
fn start_function_is_refused() {
    refused_with(&format!("{EXPORTS} (func $s) (start $s)"), "start function");
}

#[test]
fn features_outside_the_abi_are_refused() {
    let refused_feature = |fields: &str| {
        let text = format!("(module {MANIFEST} {fields})");
        let error = compile(&text).unwrap_err();
        assert!(matches!(error, ModuleError::Feature(_)), "{fields}: {error}");
    };
    let entries = r#"(func (export "apply")) (func (export "query"))"#;
    // Threads, memory64, several memories, custom page sizes.
    refused_feature(&format!(r#"{entries} (memory (export "memory") 1 1 shared)"#));
    refused_feature(&format!(r#"{entries} (memory (export "memory") i64 1)"#));
    refused_feature(&format!("{EXPORTS} (memory 1)"));
    refused_feature(&format!(r#"{entries} (memory (export "memory") 1 (pagesize 1))"#));
    // Atomics, tail calls, exceptions, relaxed SIMD, GC, references to other things than functions.
    refused_feature(&format!("{EXPORTS} (func (drop (i32.atomic.load (i32.const 0))))"));
    refused_feature(&format!("{EXPORTS} (func $f (return_call $f))"));
    refused_feature(&format!("{EXPORTS} (tag $t) (func (throw $t))"));
    refused_feature(&format!(
        "{EXPORTS} (func (param v128) (result v128) (f32x4.relaxed_min (local.get 0) (local.get 0)))"
    ));
    refused_feature(&format!("{EXPORTS} (type (struct))"));
    refused_feature(&format!("{EXPORTS} (func (param externref))"));
    refused_feature(&format!("{EXPORTS} (global i32 (i32.add (i32.const 1) (i32.const 2)))"));
}

#[test]
fn features_of_the_abi_are_accepted() {
    let fields = format!(
        r#"{EXPORTS} (table $t 2 funcref) (global (mut i32) (i32.const 0)) (data $d "x")
        (func $f (result i32 i32) (i32.const 1) (i32.extend8_s (i32.const 2)))
        (func (drop (i32.trunc_sat_f32_s (f32.const 1))))
        (func (memory.copy (i32.const 0) (i32.const 1) (i32.const 2)) (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)))
        (func (table.set $t (i32.const 0) (ref.null func)))
        (func (result v128) (i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 (v128.const i64x2 1 2) (v128.const i64x2 3 4)))"#
    );
    compile(&format!("(module {MANIFEST} {fields})")).unwrap();
}

#[test]
fn oversized_parts_are_refused() {
    let entries = r#"(func (export "apply")) (func (export "query"))"#;
    refused_with(&format!(r#"{entries} (memory (export "memory") 16385)"#), "initial memory");
    refused_with(&format!("{EXPORTS} (table 100001 funcref)"), "elements of a table");
    refused_with(&format!("{EXPORTS} {}", "(table 1 funcref)".repeat(5)), "the number of tables");
    let locals = "(local i64)".repeat(4097);
    refused_with(&format!("{EXPORTS} (func {locals})"), "locals of function 2");
    let body = "(drop (i64.const 0x7fffffffffffffff))".repeat(100_000);
    refused_with(&format!("{EXPORTS} (func {body})"), "the size of function 2");
}
