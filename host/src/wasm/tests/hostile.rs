//! Modules made to do harm, one a name: each is refused when it is uploaded, or fails alone at run
//! time, in a known way and soon, while commands before and after it work.

use std::time::{Duration, Instant};

use super::support::*;
use crate::wasm::check::examine;
use crate::wasm::limits::{MAX_FRAME_BYTES, MAX_MERGES, MAX_STRAIGHT_STACK_BYTES};
use crate::wasm::{
    Call, Executor, FailureKind, Limits, MAX_MODULE_BYTES, ModuleError, PluginEngine, PluginModule,
    QueryResult, Reuse, check_module,
};

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

/// Modules that no node may take.
fn refused_modules() -> Vec<(&'static str, Vec<u8>, Refused)> {
    use Refused::*;
    let manifest = |text: &str| with_section(&format!(r#"(@custom "raftkv" "{text}")"#));
    let import = |fields: &str| module_bytes(&format!("{fields} {ENTRIES} {MEMORY}"));
    let nested = format!("{}{}", "block ".repeat(600_000), "end ".repeat(600_000));
    let table =
        format!("(func (param i32) (block (br_table {} (local.get 0))))", "0 ".repeat(1 << 21));
    vec![
        ("empty file", Vec::new(), Invalid),
        ("text instead of a module", b"(module)".to_vec(), Invalid),
        ("100 MB", vec![0; 100_000_000], Other("`wasm-opt -Oz --strip-debug`")),
        ("component", wat::parse_str("(component)").unwrap(), Other("component")),
        // The custom section.
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
        // Imports.
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
        // Features.
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
        // What runs outside of commands, or is not there at all.
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
        // What would take long or much to compile, or to start.
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
        ("very many merging values", merging(4_000, 9_000), Limit("blocks of function")),
        ("deep chain of calls", with_memory(&chain(6_000)), Limit("nested calls take")),
        (
            "huge frame",
            with_memory(&format!("(func {})", "(drop (f64x2.splat (f64.const 1)))".repeat(30_000))),
            Limit("stack frame of function"),
        ),
    ]
}

fn type_section(count: usize) -> String {
    // All different, since the text format merges equal ones only if they have no name.
    (0..count).map(|i| format!("(type $t{i} (func))")).collect()
}

fn exports(count: usize) -> String {
    let all: String = (0..count).map(|i| format!(r#"(export "e{i}" (func 0))"#)).collect();
    all
}

/// Functions that each call the next one.
fn chain(count: usize) -> String {
    let links = (0..count).map(|i| format!("(func $c{i} (call $c{}))", i + 1));
    let links: String = links.collect();
    // Only what an entry reaches is counted.
    format!("{links} (func $c{count}) (func (export \"migrate\") (call $c0))")
}

/// A function whose blocks each merge many locals from two sides.
fn merging(locals: usize, blocks: usize) -> Vec<u8> {
    let set: String =
        (1..=locals).map(|i| format!("(local.set {i} (i64.load (i32.const {i})))")).collect();
    let targets: String = (0..blocks).map(|i| format!("{i} ")).collect();
    let body = format!(
        "{} (br_table {targets} (local.get 0)) end {set} {}",
        "block ".repeat(blocks),
        "end ".repeat(blocks - 1)
    );
    with_memory(&format!("(func (param i32) (local {}) {body})", "i64 ".repeat(locals)))
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

/// What a command comes to, with a node's limits.
enum Comes {
    Fails(FailureKind),
    Succeeds,
}

/// Bodies of commands, and what they come to. A command that does nothing follows each.
fn hostile_bodies() -> Vec<(&'static str, &'static str, String, Comes)> {
    use Comes::*;
    use FailureKind::*;
    let (open, one, big) = (
        "(drop (call $scan_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)))",
        r#"(memory (export "memory") 1)"#,
        r#"(memory (export "memory") 513)"#,
    );
    // 32 MiB a round.
    let fill = "(memory.fill (i32.const 0) (i32.const 7) (i32.const 0x2000000))";
    let copy = "(memory.copy (i32.const 0) (i32.const 1) (i32.const 0x2000000))";
    let init = "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 50000))";
    let forever = |body: &str| format!("(loop $l {body} (br $l))");
    let recursive = r#"(memory (export "memory") 1)
        (table 1 funcref) (elem (i32.const 0) $table)
        (func $direct (call $direct))
        (func $ping (call $pong)) (func $pong (call $ping))
        (func $table (call_indirect (i32.const 0)))"#;
    let segment = r#"(memory (export "memory") 1) (data $d "SEGMENT")"#;
    vec![
        ("endless loop", one, forever(""), Fails(OutOfFuel)),
        ("endless loop of jumps", one, "(loop $l (br_table $l $l (i32.const 9)))".into(), Fails(OutOfFuel)),
        ("endless recursion", recursive, "(call $direct)".into(), Fails(CallDepth)),
        ("endless mutual recursion", recursive, "(call $ping)".into(), Fails(CallDepth)),
        ("endless recursion by a table", recursive, "(call $table)".into(), Fails(CallDepth)),
        ("memory bomb", one, forever("(drop (memory.grow (i32.const 1)))"), Fails(MemoryLimit)),
        ("memory bomb at once", one, "(drop (memory.grow (i32.const 65535)))".into(), Fails(MemoryLimit)),
        ("filling 32 MiB for ever", big, forever(fill), Fails(OutOfFuel)),
        ("copying 32 MiB for ever", big, forever(copy), Fails(OutOfFuel)),
        ("filling all that there is not", one, "(memory.fill (i32.const 0) (i32.const 1) (i32.const -1))".into(), Fails(OutOfFuel)),
        ("initialising for ever", segment, forever(init), Fails(OutOfFuel)),
        ("scans without end", one, forever(&format!("{open} (call $scan_close (i32.const 0))")), Fails(OutOfFuel)),
        ("scans never closed", one, forever(open), Fails(BadCall)),
        ("16 scans left open", one, open.repeat(16), Succeeds),
        ("a response of 17 MiB", big, "(call $respond (i32.const 0) (i32.const 0x1100000))".into(), Fails(BadCall)),
        ("a response of minus one byte", one, "(call $respond (i32.const 0) (i32.const -1))".into(), Fails(BadCall)),
        ("responding for ever", big, forever("(call $respond (i32.const 0) (i32.const 0x1000000))"), Fails(OutOfFuel)),
        ("responding twice", one, "(call $respond (i32.const 0) (i32.const 2)) (call $respond (i32.const 0) (i32.const 1))".into(), Succeeds),
        ("a message of 32 MiB", big, "(call $fail (i32.const 1) (i32.const 0) (i32.const 0x2000000))".into(), Fails(Failed)),
        ("last words of 32 MiB", big, "(call $abort (i32.const 0) (i32.const 0x2000000))".into(), Fails(Panic)),
        ("a key too long", big, "(call $put (i32.const 0) (i32.const 65568) (i32.const 0) (i32.const 0))".into(), Fails(BadCall)),
        ("a key of minus one byte", one, "(call $delete (i32.const 0) (i32.const -1))".into(), Fails(BadCall)),
        ("a value too large", big, "(call $put (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 9437185))".into(), Fails(BadCall)),
        ("writing all the time", big, forever("(call $put (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 9000000))"), Fails(OutOfFuel)),
        ("reading outside memory", one, "(drop (call $get (i32.const 65535) (i32.const 9) (i32.const 0) (i32.const 0)))".into(), Fails(BadCall)),
        ("reading to outside memory", one, "(drop (call $get (i32.const 0) (i32.const 1) (i32.const -4) (i32.const 8)))".into(), Fails(BadCall)),
        ("keys by the thousand", big, forever("(drop (call $get_many (i32.const 0) (i32.const 0x1000000) (i32.const 0) (i32.const 0)))"), Fails(OutOfFuel)),
        ("a log full of lines", one, forever("(call $log (i32.const 3) (i32.const 0) (i32.const 60000))"), Fails(OutOfFuel)),
        ("a log line of 32 MiB", big, "(call $log (i32.const 3) (i32.const 0) (i32.const 0x2000000))".into(), Succeeds),
        ("pulling in the middle", one, "(drop (call $next_command (i32.const 4096) (i32.const 4096)))".into(), Succeeds),
        ("jumping into nowhere", recursive, "(call_indirect (i32.const -1))".into(), Fails(Trap)),
        ("a table bomb", recursive, forever("(drop (table.grow (ref.null func) (i32.const 5000)))"), Fails(MemoryLimit)),
        ("dividing by nothing", one, "(drop (i64.rem_s (i64.const 1) (i64.const 0)))".into(), Fails(Trap)),
    ]
}

/// The module of a body: one command a call, except that a payload of "well" is answered at once.
fn hostile(fields: &str, body: &str) -> PluginModule {
    let fields = fields.replace("SEGMENT", &"x".repeat(50_000));
    each_with(
        &fields,
        &format!(
            "(if (i32.eq (local.get $n) (i32.const 4)) (then
               (call $respond (i32.const 4096) (i32.const 4)) (return)))
             {body}"
        ),
    )
}

/// Runs a well-behaved command, the hostile one, and a well-behaved one, in a batch.
fn between(module: &PluginModule, reuse: Reuse) -> (Option<FailureKind>, Duration) {
    let mut executor = Executor::new(engine(), reuse).unwrap();
    let calls: Vec<Call> = ["well", "", "well"].iter().map(call).collect();
    let started = Instant::now();
    let storage = Box::new(TestStorage::default());
    let outcome = executor.apply(module, &Limits::default(), calls, storage).unwrap();
    let took = started.elapsed();
    let [before, hostile, after] = &outcome.results[..] else { panic!("three results") };
    assert_eq!((before, after), (&ok(b"well"), &ok(b"well")));
    (hostile.as_ref().err().map(|failure| failure.kind), took)
}

#[test]
fn hostile_commands_fail_alone_and_soon() {
    for (name, fields, body, comes) in hostile_bodies() {
        let module = hostile(fields, &body);
        let expected = match comes {
            Comes::Fails(kind) => Some(kind),
            Comes::Succeeds => None,
        };
        for reuse in [Reuse::Keep, Reuse::Never] {
            // One that pulls in the middle takes what comes next as its own.
            if name == "pulling in the middle" && reuse == Reuse::Keep {
                continue;
            }
            let (kind, took) = between(&module, reuse);
            assert_eq!(kind, expected, "{name}");
            assert!(took < SOON, "{name} took {took:?}");
        }
    }
}

#[test]
fn hostile_queries_fail_alone_and_write_nothing() {
    for (name, fields, body, comes) in hostile_bodies() {
        let module = hostile(fields, &body);
        let calls = ["", "well"].iter().map(call).collect();
        let storage = Box::new(TestStorage::default());
        let outcome = executor().query(&module, &Limits::default(), None, calls, storage).unwrap();
        let writes = ["put", "delete"].iter().any(|call| body.contains(&format!("call ${call}")));
        let kind = match &outcome.results[0] {
            QueryResult::Done(result) => result.as_ref().err().map(|failure| failure.kind),
            QueryResult::OverBudget => panic!("{name}: there was no budget"),
        };
        let expected = match comes {
            _ if writes => Some(FailureKind::BadCall),
            Comes::Fails(kind) => Some(kind),
            Comes::Succeeds => None,
        };
        assert_eq!(kind, expected, "{name}");
        assert!(TestStorage::back(outcome.storage).rows().is_empty(), "{name}");
        if name != "pulling in the middle" {
            assert_eq!(outcome.results[1], QueryResult::Done(ok(b"well")), "{name}");
        }
    }
}

#[test]
fn migrate_that_traps_or_never_ends_leaves_nothing() {
    for (body, kind) in
        [("unreachable", FailureKind::Trap), ("(loop $l (br $l))", FailureKind::OutOfFuel)]
    {
        let module = module(&format!(
            r#"{MEMORY} {ENTRIES} (func (export "migrate")
               (call $put (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1)) {body})"#
        ));
        let storage = Box::new(TestStorage::default());
        let outcome = executor().migrate(&module, &Limits::default(), call(""), storage).unwrap();
        assert_eq!(outcome.results[0].clone().unwrap_err().kind, kind);
        assert!(TestStorage::back(outcome.storage).rows().is_empty());
    }
}

#[test]
fn data_for_more_memory_than_there_is_fails_each_command() {
    let module =
        each_with(&format!(r#"{MEMORY} (data (i32.const 65000) "{}")"#, "x".repeat(1_000_000)), "");
    assert_eq!(failure(&module).kind, FailureKind::Trap);
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

/// Each NaN there is comes out with the same bits, whatever it was made from.
#[test]
fn nans_have_no_payloads_of_their_own() {
    let makes = [
        "(f64.add (f64.const nan:0x123) (f64.const 1))",
        "(f64.mul (f64.const -nan:0xfff) (f64.const nan:0x1))",
        "(f64.sqrt (f64.const -1))",
        "(f64.div (f64.const 0) (f64.const 0))",
        "(f64.sub (f64.const inf) (f64.const inf))",
        "(f64.min (f64.const nan:0x77) (f64.const 1))",
        "(f64.promote_f32 (f32.const nan:0x42))",
        "(f64x2.extract_lane 0 (f64x2.div (v128.const f64x2 0 0) (v128.const f64x2 0 0)))",
    ];
    for make in makes {
        let module = each(&format!(
            "(f64.store (i32.const 0) {make}) (call $respond (i32.const 0) (i32.const 8))"
        ));
        let (results, _) = apply(&module, &[b""]);
        assert_eq!(results[0], ok(&0x7ff8_0000_0000_0000u64.to_le_bytes()), "{make}");
    }
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

/// The engine of the tests has room for few: one that a hostile module filled would show.
#[test]
fn instances_of_hostile_modules_are_given_back() {
    let engine = PluginEngine::new(1).unwrap();
    let text = format!(
        "(module {MANIFEST} {IMPORTS} {MEMORY} (func $r (call $r)) (func $run (drop (call $next_command (i32.const 0) (i32.const 9))) (call $r)) (export \"apply\" (func $run)) (export \"query\" (func $run)))"
    );
    let module = PluginModule::compile(&engine, &wat::parse_str(text).unwrap()).unwrap();
    let mut executor = Executor::new(&engine, Reuse::Keep).unwrap();
    for _ in 0..100 {
        let storage = Box::new(TestStorage::default());
        let outcome = executor.apply(&module, &Limits::default(), vec![call("")], storage).unwrap();
        assert_eq!(outcome.results[0].clone().unwrap_err().kind, FailureKind::CallDepth);
    }
    assert_eq!(executor.kept_memory_bytes(), 0);
}
