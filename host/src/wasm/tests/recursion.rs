//! The limit on recursion: it is counted in the code, the same everywhere, and the native stack never
//! ends before it.

use std::thread;

use super::support::*;
use crate::wasm::instrument::GUARD_FUEL;
use crate::wasm::limits::MAX_RECURSION_BYTES;
use crate::wasm::{
    Executor, FailureKind, Limits, ModuleError, PluginFailure, PluginModule, Reuse, check_module,
};

/// A module whose command answers, as 4 bytes, with what `$start` gives for the number in its payload.
fn recursive(functions: &str) -> PluginModule {
    each_with(
        &format!(r#"(memory (export "memory") 1) {functions}"#),
        "(i32.store (i32.const 0) (call $start (i32.load (i32.const 4096))))
         (call $respond (i32.const 0) (i32.const 4))",
    )
}

/// What it comes to with so many calls nested, on an instance of its own or one that is kept.
fn nest(module: &PluginModule, calls: u32, reuse: Reuse) -> Result<u32, PluginFailure> {
    let (module, limits) = (module.clone(), Limits::default());
    // The stack that threads of a node have.
    let run = move || {
        let mut executor = Executor::new(engine(), reuse).unwrap();
        let storage = Box::new(TestStorage::default());
        let command = vec![call(calls.to_le_bytes())];
        executor.apply(&module, &limits, command, storage).unwrap().results[0].clone()
    };
    let thread = thread::Builder::new().stack_size(4 << 20).spawn(run).unwrap();
    let response = thread.join().unwrap()?;
    Ok(u32::from_le_bytes(response[..].try_into().unwrap()))
}

fn kind(came: &Result<u32, PluginFailure>) -> Option<FailureKind> {
    came.as_ref().err().map(|failure| failure.kind)
}

/// How many calls can be nested.
fn depth(module: &PluginModule) -> u32 {
    let (mut fits, mut too_many) = (0, MAX_RECURSION_BYTES);
    while too_many - fits > 1 {
        let middle = fits.midpoint(too_many);
        let came = nest(module, middle, Reuse::Never);
        match kind(&came) {
            None => fits = middle,
            Some(FailureKind::CallDepth) => too_many = middle,
            Some(_) => panic!("{came:?}"),
        }
    }
    fits
}

/// Calls itself as often as it is told, and counts.
const DIRECT: &str = "
  (func $start (param i32) (result i32)
    (if (i32.eqz (local.get 0)) (then (return (i32.const 0))))
    (i32.add (i32.const 1) (call $start (i32.sub (local.get 0) (i32.const 1)))))";

/// Two functions that call each other.
const MUTUAL: &str = "
  (func $start (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (i32.const 1) (call $other (i32.sub (local.get 0) (i32.const 1)))))
      (else (i32.const 0))))
  (func $other (param i32) (result i32)
    (br_if 0 (i32.const 0) (i32.eqz (local.get 0)))
    drop
    (i32.add (i32.const 1) (call $start (i32.sub (local.get 0) (i32.const 1)))))";

/// One that finds itself in a table.
const BY_TABLE: &str = "
  (table 1 funcref) (elem (i32.const 0) $start)
  (func $start (param i32) (result i32)
    (if (i32.eqz (local.get 0)) (then (return (i32.const 0))))
    (i32.add (i32.const 1)
      (call_indirect (param i32) (result i32) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))))";

/// One that puts itself into the table first.
const BY_TABLE_SET: &str = "
  (table 1 funcref) (elem declare func $start)
  (func $start (param i32) (result i32)
    (table.set (i32.const 0) (ref.func $start))
    (if (i32.eqz (local.get 0)) (then (return (i32.const 0))))
    (i32.add (i32.const 1)
      (call_indirect (param i32) (result i32) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))))";

/// Several results, and ways out of the middle of blocks.
const MANY_RESULTS: &str = "
  (func $start (param i32) (result i32) (call $pair (local.get 0)) drop)
  (func $pair (param i32) (result i32 i64)
    (block
      (loop
        (br_if 1 (local.get 0))
        (return (i32.const 0) (i64.const 0))))
    (call $pair (i32.sub (local.get 0) (i32.const 1)))
    (br_table 0 0 (i32.const 1))
    unreachable)";

#[test]
fn recursion_to_a_legal_depth_works_and_leaves_the_count_as_it_was() {
    for functions in [DIRECT, MUTUAL, BY_TABLE, BY_TABLE_SET] {
        let module = recursive(functions);
        for reuse in [Reuse::Keep, Reuse::Never] {
            for calls in [0, 1, 2, 1000] {
                assert_eq!(nest(&module, calls, reuse), Ok(calls), "{functions}");
            }
        }
        // A thousand commands on one instance: what each took, it gave back.
        let thousand = 1000u32.to_le_bytes();
        let (results, _) = apply(&module, &[&thousand[..]; 1000]);
        assert!(results.iter().all(|result| *result == ok(&1000u32.to_le_bytes())));
    }
    assert_eq!(nest(&recursive(MANY_RESULTS), 1000, Reuse::Keep), Ok(0));
}

#[test]
fn recursion_too_deep_is_a_failed_command_in_whatever_way_it_goes() {
    for functions in [DIRECT, MUTUAL, BY_TABLE, BY_TABLE_SET, MANY_RESULTS] {
        let module = recursive(functions);
        for reuse in [Reuse::Keep, Reuse::Never] {
            let failure = nest(&module, 1_000_000, reuse).unwrap_err();
            assert_eq!(failure.kind, FailureKind::CallDepth, "{functions}");
            assert_eq!(failure.message, "the call stack is exhausted");
        }
    }
}

/// Replicas disagree if these numbers ever change: they are part of the ABI, like fuel.
#[test]
fn depth_is_to_the_call_the_same_for_ever() {
    let depths = [DIRECT, MUTUAL, BY_TABLE, MANY_RESULTS].map(|f| depth(&recursive(f)));
    assert_eq!(depths, [8737, 8885, 8737, 8737]);
}

#[test]
fn depth_does_not_depend_on_whether_the_instance_is_kept() {
    let module = recursive(DIRECT);
    let most = depth(&module);
    for calls in [most / 2 - 5, most / 2 + 5, most - 1, most, most + 1, most + 2] {
        let (alone, kept) = (nest(&module, calls, Reuse::Never), nest(&module, calls, Reuse::Keep));
        assert_eq!(alone, kept, "{calls}");
        assert_eq!(alone.is_ok(), calls <= most, "{calls}");
    }
}

/// Sets itself up once an instance, by recursion on top of the command's own: kept instances must not
/// succeed with what fails on a fresh one.
#[test]
fn set_up_on_top_of_deep_recursion_fails_on_every_instance() {
    let functions = "
      (global $ready (mut i32) (i32.const 0))
      (func $deep (param i32) (result i32)
        (if (result i32) (local.get 0)
          (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1)))))
          (else
            (if (result i32) (global.get $ready)
              (then (i32.const 0))
              (else
                (global.set $ready (i32.const 1))
                (i32.mul (i32.const 0) (call $deep (i32.const 2000))))))))
      (func $start (param i32) (result i32) (call $deep (local.get 0)))";
    let module = recursive(functions);
    let most = depth(&module);
    // Set up by the first, so that alone the second would fit well.
    let payloads = [1u32, most + 1000].map(u32::to_le_bytes);
    let (results, _) = {
        let mut executor = executor();
        let storage = Box::new(TestStorage::default());
        let calls = payloads.iter().map(call).collect();
        let outcome = executor.apply(&module, &Limits::default(), calls, storage).unwrap();
        (outcome.results, TestStorage::back(outcome.storage))
    };
    assert_eq!(results[0], ok(&1u32.to_le_bytes()));
    assert_eq!(results[1].clone().unwrap_err().kind, FailureKind::CallDepth);
}

#[test]
fn unreachable_in_the_middle_of_recursion_is_a_trap_of_its_own() {
    let module = recursive(
        "(func $start (param i32) (result i32)
           (if (i32.eqz (local.get 0)) (then unreachable))
           (call $start (i32.sub (local.get 0) (i32.const 1))))",
    );
    assert_eq!(kind(&nest(&module, 10, Reuse::Keep)), Some(FailureKind::Trap));
    assert_eq!(kind(&nest(&module, 1_000_000, Reuse::Keep)), Some(FailureKind::CallDepth));
}

#[test]
fn only_recursion_pays() {
    let fuel = |functions: &str, calls: u32, fuel_per_command: u64| {
        let module = recursive(functions);
        let mut executor = Executor::new(engine(), Reuse::Never).unwrap();
        let limits = Limits { fuel_per_command, ..Limits::default() };
        let storage = Box::new(TestStorage::default());
        let command = vec![call(calls.to_le_bytes())];
        executor.apply(&module, &limits, command, storage).unwrap().results[0].is_ok()
    };
    let needs = |functions: &str, calls: u32| {
        let (mut too_little, mut enough) = (0, 1 << 20);
        while enough - too_little > 1 {
            let middle = u64::midpoint(too_little, enough);
            if fuel(functions, calls, middle) { enough = middle } else { too_little = middle }
        }
        enough
    };
    // 9 instructions and 1 for entering, and the guard.
    assert_eq!(needs(DIRECT, 2) - needs(DIRECT, 1), 10 + GUARD_FUEL);
    let plain = "(func $start (param i32) (result i32) (call $leaf) (call $leaf) (i32.const 0))
                 (func $leaf)";
    let less = "(func $start (param i32) (result i32) (call $leaf) (i32.const 0)) (func $leaf)";
    assert_eq!(needs(plain, 0) - needs(less, 0), 2);
}

/// Bodies made so that compiled frames are as large as can be for what is reckoned: values that live
/// across the call in every way there is. `$start` is the function, `N` values a way.
fn large_frames() -> Vec<(&'static str, String)> {
    const N: usize = 600;
    let each = |make: &dyn Fn(usize) -> String| (0..N).map(make).collect::<String>();
    let locals = |ty: &str| {
        let set = each(&|i| format!("(local.set {} ({ty}.load (i32.const {})))", i + 1, i * 16));
        let get = each(&|i| format!("({ty}.store (i32.const {}) (local.get {}))", i * 16, i + 1));
        let declared = format!("(local {})", format!("{ty} ").repeat(N));
        format!("(func $start (param i32) (result i32) {declared} {set} {CALL} {get})")
    };
    // Computed before the call and after it: a compiler keeps the first result.
    let twice = |before: &str, ty: &str, value: &dyn Fn(usize) -> String| {
        let store = each(&|i| format!("({ty}.store (i32.const {}) {})", i * 16, value(i)));
        format!(
            "(func $start (param i32) (result i32) (local $l i64) (local $d f64)
               (local.set $l (i64.load (i32.const 0))) (local.set $d (f64.load (i32.const 8)))
               {before} {store} {CALL} {store})"
        )
    };
    // The same for all rounds of a loop: a compiler computes it before.
    let moved = |value: &dyn Fn(usize) -> String| {
        let looped = format!("(loop $again {CALL} drop");
        twice("", "i64", value)
            .replace(CALL, "")
            .replacen("(i64.store", &format!("{looped} (i64.store"), 1)
            .trim_end_matches(')')
            .to_owned()
            + "))) (br_if $again (i32.load (i32.const 0)))) (i32.const 0))"
    };
    let operands = each(&|i| format!("(i64.load (i32.const {}))", i * 8));
    let folded = "i64.add ".repeat(N - 1);
    let params = format!("(param {}) (result {})", "v128 ".repeat(N), "v128 ".repeat(N));
    let given = (0..N).rev().map(|i| format!("(local.get {i})")).collect::<String>();
    vec![
        ("integer locals", locals("i64")),
        ("vector locals", locals("v128")),
        ("products", twice("", "i64", &|i| format!("(i64.mul (local.get $l) (i64.const {}))", i * 7919 + 12_345_678_901))),
        ("float products", twice("", "f64", &|i| format!("(f64.mul (local.get $d) (f64.const {i}.25))"))),
        ("vector constants", twice("", "v128", &|i| format!("(v128.const i64x2 {} {})", i * 7919, i * 104_729))),
        ("moved out of a loop", moved(&|i| format!("(i64.mul (local.get $l) (i64.const {}))", i * 7919 + 12_345_678_901))),
        (
            "operands",
            format!("(func $start (param i32) (result i32) {operands} {CALL} (i32.store (i32.const 0)) {folded} i32.wrap_i64)")
                .replace(&format!("{CALL} (i32.store (i32.const 0))"), &format!("(i32.store (i32.const 0) {CALL})")),
        ),
        (
            "arguments and results",
            format!(
                "(func $start (param i32) (result i32) {} (call $many) {} (i32.const 0))
                 (func $many {params} {given} (call $many))",
                "(v128.const i64x2 1 2)".repeat(N),
                "drop ".repeat(N)
            ),
        ),
    ]
}

/// The recursive call of [`large_frames`].
const CALL: &str = "(call $start (local.get 0))";

#[test]
fn native_stack_never_ends_before_the_limit_does() {
    for (name, functions) in large_frames() {
        let module = recursive(&functions);
        // On the native stack's end this would be an error of the node, and panic.
        let came = nest(&module, 1, Reuse::Never);
        assert_eq!(kind(&came), Some(FailureKind::CallDepth), "{name}: {came:?}");
    }
}

/// A module where `$f0` calls `$f1` and so on, each with so many locals.
fn chain(functions: usize, locals: usize) -> Vec<u8> {
    let mut fields = r#"(memory (export "memory") 1) (func (export "query"))"#.to_owned();
    let declared = format!("(local {})", "i64 ".repeat(locals));
    for i in 0..functions {
        let next = if i + 1 < functions { format!("(call $f{})", i + 1) } else { String::new() };
        let export = if i == 0 { r#"(export "apply")"# } else { "" };
        fields += &format!("(func $f{i} {export} {declared} {next})");
    }
    wat::parse_str(format!("(module {MANIFEST} {fields})")).unwrap()
}

#[test]
fn chain_of_calls_without_recursion_is_bounded_by_the_checks() {
    check_module(&chain(3_000, 1)).unwrap();
    check_module(&chain(100, 500)).unwrap();
    for too_deep in [chain(5_000, 1), chain(100, 1_000)] {
        let error = check_module(&too_deep).unwrap_err();
        assert!(matches!(error, ModuleError::Limit { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("nested calls take without recursion"), "{message}");
        assert!(message.contains("allowed are 524288"), "{message}");
    }
}

#[test]
fn longest_legal_chain_runs() {
    let functions: String = (0..2_800)
        .map(|i| format!("(func $f{i} (param i32) (result i32) (call $f{} (local.get 0)))", i + 1))
        .collect();
    let module = recursive(
        &format!("{functions} (func $f2800 (param i32) (result i32) (local.get 0))")
            .replace("$f0 ", "$start "),
    );
    assert_eq!(nest(&module, 7, Reuse::Keep), Ok(7));
}

#[test]
fn function_with_a_frame_beyond_all_measure_is_refused() {
    let body = "(drop (v128.not (v128.const i64x2 1 2)))".repeat(20_000);
    let text = format!(
        r#"(module {MANIFEST} (memory (export "memory") 1) (func (export "query"))
           (func (export "apply") {body}))"#
    );
    let error = check_module(&wat::parse_str(text).unwrap()).unwrap_err().to_string();
    assert!(error.contains("the stack frame of function 1"), "{error}");
}

#[test]
fn the_counters_name_is_the_hosts() {
    let text = format!(
        r#"(module {MANIFEST} (memory (export "memory") 1) (func (export "query"))
           (func (export "apply")) (global (export "raftkv:stack-left") i32 (i32.const 0)))"#
    );
    let error = check_module(&wat::parse_str(text).unwrap()).unwrap_err().to_string();
    assert!(error.contains("is the host's own"), "{error}");
}
