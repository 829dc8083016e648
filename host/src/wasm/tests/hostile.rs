//! Modules made to do harm, one a name: each is refused when it is uploaded, with its reason and soon.

use std::time::{Duration, Instant};

use super::support::*;
use crate::wasm::check::examine;
use crate::wasm::limits::{
    MAX_FRAME_BYTES, MAX_MERGES, MAX_MERGING_WORK, MAX_STRAIGHT_STACK_BYTES,
};
use crate::wasm::{MAX_MODULE_BYTES, ModuleError, PluginModule, check_module};

/// Time within which each of them has to be done with. Generous: what it is to tell apart from is
/// minutes.
const SOON: Duration = Duration::from_secs(20);

const ENTRIES: &str = r#"(func (export "apply")) (func (export "query"))"#;
const MEMORY: &str = r#"(memory (export "memory") 1)"#;

/// What the module is refused with, by its kind and words of the message.
enum Refused {
    Feature,
    Invalid,
    Import(&'static str),
    Manifest(&'static str),
    Limit(&'static str),
    Other(&'static str),
}

fn module_bytes(fields: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {MANIFEST} {fields})")).unwrap()
}

fn with_memory(fields: &str) -> Vec<u8> {
    module_bytes(&format!("{ENTRIES} {MEMORY} {fields}"))
}

/// A module whose custom section holds `section`.
fn with_section(section: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {section} {ENTRIES} {MEMORY})")).unwrap()
}

/// A module that no node may take: its name, its bytes, and why.
type Case = (&'static str, Vec<u8>, Refused);

/// What is no core module at all.
fn no_modules() -> Vec<Case> {
    use Refused::*;
    vec![
        ("empty file", Vec::new(), Invalid),
        ("text instead of a module", b"(module)".to_vec(), Invalid),
        ("100 MB", vec![0; 100_000_000], Other("`wasm-opt -Oz --strip-debug`")),
        ("component", wat::parse_str("(component)").unwrap(), Other("component")),
    ]
}

/// Custom sections.
fn wrong_sections() -> Vec<Case> {
    use Refused::*;
    let manifest = |text: &str| with_section(&format!(r#"(@custom "raftkv" "{text}")"#));
    vec![
        ("no custom section", with_section(""), Other("no custom section")),
        ("two custom sections", with_section(&MANIFEST.repeat(2)), Manifest("more than once")),
        ("section that is no text", manifest("\\ff\\fe\\n"), Manifest("not UTF-8")),
        (
            "section of another ABI",
            manifest("name=a\\nversion=1.0.0\\nabi=9\\n"),
            Other("ABI \"9\""),
        ),
        (
            "section without a line's end",
            manifest("name=a\\nversion=1.0.0\\nabi=1"),
            Manifest("line feed"),
        ),
        ("section of a megabyte", manifest(&"x".repeat(1 << 20)), Manifest("line feed")),
        (
            "name of a megabyte",
            manifest(&format!("name={}\\nversion=1.0.0\\nabi=1\\n", "a".repeat(1 << 20))),
            Manifest("1 to 64"),
        ),
    ]
}

/// Imports.
fn wrong_imports() -> Vec<Case> {
    use Refused::*;
    let import = |fields: &str| module_bytes(&format!("{fields} {ENTRIES} {MEMORY}"));
    vec![
        (
            "WASI",
            import(r#"(import "wasi_snapshot_preview1" "clock_time_get" (func))"#),
            Import("no WASI"),
        ),
        ("unknown env", import(r#"(import "env" "system" (func))"#), Import("undefined symbol")),
        (
            "right name, wrong type",
            import(r#"(import "raftkv_v1" "put" (func (param i32)))"#),
            Import("the ABI says"),
        ),
        (
            "right name, wrong module",
            import(r#"(import "raftkv" "put" (func (param i32 i32 i32 i32)))"#),
            Import("`raftkv_v1`"),
        ),
        (
            "imported global",
            import(r#"(import "raftkv_v1" "get" (global i32))"#),
            Import("not a function"),
        ),
        (
            "imported table",
            import(r#"(import "raftkv_v1" "get" (table 1 funcref))"#),
            Import("not a function"),
        ),
        (
            "imported memory",
            module_bytes(&format!(
                r#"(import "raftkv_v1" "memory" (memory 1)) {ENTRIES} (export "memory" (memory 0))"#
            )),
            Import("does not have it"),
        ),
        (
            "import with a name of a megabyte",
            import(&format!(r#"(import "env" "{}" (func))"#, "x".repeat(99_999))),
            Import("undefined symbol"),
        ),
    ]
}

/// Features that the ABI does not allow.
fn wrong_features() -> Vec<Case> {
    use Refused::*;
    vec![
        (
            "threads",
            module_bytes(&format!(r#"{ENTRIES} (memory (export "memory") 1 1 shared)"#)),
            Feature,
        ),
        (
            "atomics",
            with_memory("(func (drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1))))"),
            Feature,
        ),
        (
            "relaxed SIMD",
            with_memory(
                "(func (param v128) (result v128) (i32x4.relaxed_trunc_f32x4_s (local.get 0)))",
            ),
            Feature,
        ),
        (
            "memory64",
            module_bytes(&format!(r#"{ENTRIES} (memory (export "memory") i64 1)"#)),
            Feature,
        ),
        ("several memories", with_memory("(memory 1)"), Feature),
        ("GC", with_memory("(type (array i8))"), Feature),
        ("exceptions", with_memory("(tag $t) (func (throw $t))"), Feature),
        ("tail calls", with_memory("(func $f (return_call $f))"), Feature),
        ("external references", with_memory("(table 1 externref)"), Feature),
    ]
}

/// What runs outside of commands, or is not there at all.
fn wrong_exports() -> Vec<Case> {
    use Refused::*;
    vec![
        (
            "start function",
            with_memory("(func $s (loop $l (br $l))) (start $s)"),
            Other("start function"),
        ),
        (
            "apply with arguments",
            module_bytes(&format!(
                r#"(func (export "apply") (param i32)) (func (export "query")) {MEMORY}"#
            )),
            Other("`apply` has the type"),
        ),
        (
            "apply that is a global",
            module_bytes(&format!(
                r#"(global (export "apply") i32 (i32.const 0)) (func (export "query")) {MEMORY}"#
            )),
            Other("not a function"),
        ),
        ("no memory", module_bytes(ENTRIES), Other("`memory` is missing")),
        (
            "counter of the host's",
            with_memory(r#"(global (export "raftkv:stack-left") (mut i32) (i32.const 0))"#),
            Other("the host's own"),
        ),
    ]
}

/// What would take long or much to compile, or to start.
fn too_much() -> Vec<Case> {
    use Refused::*;
    let nested = format!("{}{}", "block ".repeat(600_000), "end ".repeat(600_000));
    let table =
        format!("(func (param i32) (block (br_table {} (local.get 0))))", "0 ".repeat(1 << 21));
    vec![
        (
            "huge initial memory",
            module_bytes(&format!(r#"{ENTRIES} (memory (export "memory") 65536)"#)),
            Limit("initial memory"),
        ),
        ("huge table", with_memory("(table 4000000000 funcref)"), Limit("elements of a table")),
        ("tables", with_memory(&"(table 1 funcref)".repeat(99)), Limit("number of tables")),
        (
            "globals",
            with_memory(&"(global i32 (i32.const 0))".repeat(10_001)),
            Limit("number of globals"),
        ),
        ("functions", with_memory(&"(func)".repeat(100_001)), Limit("number of functions")),
        ("types", with_memory(&type_section(100_001)), Limit("number of types")),
        ("exports", with_memory(&exports(100_001)), Limit("number of exports")),
        ("data segments", with_memory(&"(data \"\")".repeat(100_001)), Invalid),
        (
            "locals",
            with_memory(&format!("(func (local {}))", "i64 ".repeat(4_097))),
            Limit("locals of function"),
        ),
        (
            "50,001 locals",
            with_memory(&format!("(func (local {}))", "i64 ".repeat(50_001))),
            Invalid,
        ),
        (
            "huge function",
            with_memory(&format!(
                "(func {})",
                "(drop (i64.const -9223372036854775808))".repeat(100_000)
            )),
            Limit("the size of function"),
        ),
        (
            "deeply nested blocks",
            with_memory(&format!("(func {nested})")),
            Limit("the size of function"),
        ),
        ("jump table with millions of entries", with_memory(&table), Limit("the size of function")),
        ("many merging values", merging(300, 300), Limit("blocks of function")),
        ("merging values in many functions", merging_in(10, 50, 500), Limit("over all functions")),
        ("very many merging values", merging(4_000, 9_000), Limit("blocks of function")),
        ("deep chain of calls", with_memory(&chain(6_000)), Limit("nested calls take")),
        (
            "huge frame",
            with_memory(&format!("(func {})", "(drop (f64x2.splat (f64.const 1)))".repeat(30_000))),
            Limit("stack frame of function"),
        ),
    ]
}

fn refused_modules() -> impl Iterator<Item = Case> {
    let groups =
        [no_modules, wrong_sections, wrong_imports, wrong_features, wrong_exports, too_much];
    groups.into_iter().flat_map(|group| group())
}

fn type_section(count: usize) -> String {
    // All different, since the text format merges equal ones only if they have no name.
    (0..count).map(|i| format!("(type $t{i} (func))")).collect()
}

fn exports(count: usize) -> String {
    (0..count).map(|i| format!(r#"(export "e{i}" (func 0))"#)).collect()
}

/// Functions that each call the next one.
fn chain(count: usize) -> String {
    let links: String = (0..count).map(|i| format!("(func $c{i} (call $c{}))", i + 1)).collect();
    // Only what an entry reaches is counted.
    format!("{links} (func $c{count}) (func (export \"migrate\") (call $c0))")
}

/// A function whose blocks each merge many locals from two sides.
fn merging(locals: usize, blocks: usize) -> Vec<u8> {
    merging_in(1, locals, blocks)
}

/// So many of them.
fn merging_in(functions: usize, locals: usize, blocks: usize) -> Vec<u8> {
    let set: String =
        (1..=locals).map(|i| format!("(local.set {i} (i64.load (i32.const {i})))")).collect();
    let targets: String = (0..blocks).map(|i| format!("{i} ")).collect();
    let body = format!(
        "{} (br_table {targets} (local.get 0)) end {set} {}",
        "block ".repeat(blocks),
        "end ".repeat(blocks - 1)
    );
    let function = format!("(func (param i32) (local {}) {body})", "i64 ".repeat(locals));
    with_memory(&function.repeat(functions))
}

#[test]
fn hostile_modules_are_refused_each_with_its_reason() {
    for (name, bytes, refused) in refused_modules() {
        let started = Instant::now();
        let error = check_module(&bytes).expect_err(name);
        assert!(started.elapsed() < SOON, "{name} took {:?}", started.elapsed());
        let message = error.to_string();
        // A message is shown to people and goes over the network.
        let fits = message.len() < 2_000;
        let (kind_fits, words) = match refused {
            Refused::Feature => (matches!(error, ModuleError::Feature(_)), ""),
            Refused::Invalid => (matches!(error, ModuleError::Invalid(_)), ""),
            Refused::Import(words) => (
                matches!(error, ModuleError::Import { .. } | ModuleError::ImportType { .. }),
                words,
            ),
            Refused::Manifest(words) => (matches!(error, ModuleError::Manifest(_)), words),
            Refused::Limit(words) => (matches!(error, ModuleError::Limit { .. }), words),
            Refused::Other(words) => (true, words),
        };
        let shown = &message[..message.floor_char_boundary(300)];
        assert!(kind_fits && message.contains(words), "{name}: {shown}");
        assert!(fits, "{name}: a message of {} bytes: {shown}", message.len());
    }
}

/// A module as compilers make them.
const REAL: &[u8] = include_bytes!("../../../../plugins/dist/kv.wasm");

/// Small enough to try every prefix and thousands of changes.
fn small_real() -> Vec<u8> {
    wat::parse_str(format!(
        r#"(module {MANIFEST} {IMPORTS} {MEMORY} (table 2 funcref) (elem (i32.const 0) $f $run)
           (global $g (mut i32) (i32.const 7)) (data (i32.const 8) "some data") (type $t (func))
           (func $f (param i32) (result i32) (local i64 f64 v128)
             (block $out (loop $l (br_if $out (i32.eqz (local.get 0)))
               (local.set 0 (call $f (i32.sub (local.get 0) (i32.const 1)))) (br $l)))
             (if (i32.const 1) (then (call_indirect (type $t) (i32.const 1))))
             (return (global.get $g)))
           (func $run (drop (call $next_command (i32.const 0) (i32.const 9))))
           (export "apply" (func $run)) (export "query" (func $run)))"#
    ))
    .unwrap()
}

#[test]
fn what_compilers_make_is_far_from_the_limits() {
    let stack = examine(REAL).unwrap().stack;
    assert!(stack.most_merges.0 < MAX_MERGES / 20, "{:?}", stack.most_merges);
    assert!(stack.merging_work < MAX_MERGING_WORK / 20, "{}", stack.merging_work);
    assert!(stack.largest_frame.0 < MAX_FRAME_BYTES / 20, "{:?}", stack.largest_frame);
    assert!(stack.others_bytes < MAX_STRAIGHT_STACK_BYTES / 20, "{}", stack.others_bytes);
}

#[test]
fn prefixes_of_modules_are_refused_without_panic() {
    let small = small_real();
    check_module(&small).unwrap();
    let mut taken = 0;
    for end in 0..small.len() {
        // Without its last section, the data, it is a module as well.
        if check_module(&small[..end]).is_ok() {
            PluginModule::compile(engine(), &small[..end]).unwrap();
            taken += 1;
        }
    }
    assert!(taken <= 1, "{taken} prefixes were taken");
    check_module(REAL).unwrap();
    for end in (0..REAL.len()).step_by(97) {
        check_module(&REAL[..end]).expect_err("a prefix was taken");
    }
}

/// Bytes changed at random never make the checks panic, and what they let pass can be compiled: the
/// guards are put into whatever is valid.
#[test]
fn modules_with_random_changes_are_refused_or_compiled_without_panic() {
    let mut state = 1u64;
    let mut random = |bound: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let (small, mut taken) = (small_real(), 0);
    for round in 0..6_000 {
        let mut bytes = if round % 20 == 0 { REAL.to_vec() } else { small.clone() };
        for _ in 0..=random(3) {
            let place = random(bytes.len());
            bytes[place] = random(256) as u8;
        }
        if check_module(&bytes).is_ok() && bytes.len() < 10_000 {
            taken += 1;
            let compiled = PluginModule::compile(engine(), &bytes);
            assert!(compiled.is_ok(), "round {round}: {:?}", compiled.err());
        }
    }
    assert!(taken > 100, "only {taken} of the changed modules were taken: the test shows little");
}

/// Legal as far as the checks can tell, but more than the compiler takes.
#[test]
fn jump_table_of_a_million_entries_is_refused_by_the_compiler_without_panic() {
    let targets = "0 ".repeat(1_000_000);
    let bytes =
        with_memory(&format!("(func (param i32) (block (br_table {targets} (local.get 0))))"));
    let error = PluginModule::compile(engine(), &bytes).unwrap_err();
    assert!(matches!(error, ModuleError::Compile(_)), "{error}");
}

#[test]
fn module_of_exactly_the_limit_is_looked_at() {
    let mut bytes = module_bytes(&format!("{ENTRIES} {MEMORY}"));
    // One more custom section fills it up: a name of one byte, and what is left.
    let rest = MAX_MODULE_BYTES - bytes.len() - 1 - 4;
    bytes.push(0);
    bytes.extend((0..4).map(|i| ((rest >> (7 * i)) & 0x7f) as u8 | if i < 3 { 0x80 } else { 0 }));
    bytes.extend([1, b'x']);
    bytes.resize(MAX_MODULE_BYTES, 0);
    check_module(&bytes).unwrap();
    bytes.push(0);
    assert!(matches!(check_module(&bytes), Err(ModuleError::TooLarge { .. })));
}
