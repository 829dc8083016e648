//! Plugins that go wrong, by accident or on purpose, each in its own way.

use super::support::*;
use crate::wasm::{Executor, FailureKind, Limits, PluginFailure, Reuse};

const WRITE: &str = "(call $put (i32.const 4096) (i32.const 1) (i32.const 4096) (i32.const 1))";

/// Writes something, then runs `body`; the write must be gone.
fn fails(body: &str) -> PluginFailure {
    failure(&each(&format!("{WRITE} {body}")))
}

fn fails_as(body: &str, kind: FailureKind, words: &str) {
    let failure = fails(body);
    assert_eq!(failure.kind, kind, "{body}: {failure}");
    assert_eq!(failure.code, 0);
    assert!(failure.message.contains(words), "{body}: {failure}");
}

#[test]
fn traps_are_recorded_by_kind() {
    use FailureKind::Trap;
    fails_as("unreachable", Trap, "unreachable");
    fails_as("(i32.store (i32.const 0x7fffffff) (i32.const 1))", Trap, "outside memory");
    fails_as("(drop (i32.load offset=0xffffffff (i32.const -1)))", Trap, "outside memory");
    fails_as("(drop (i32.div_u (i32.const 1) (i32.const 0)))", Trap, "division by zero");
    fails_as("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", Trap, "overflow");
    fails_as("(drop (i32.trunc_f64_s (f64.const nan)))", Trap, "invalid conversion");
    fails_as("(memory.fill (i32.const 0) (i32.const 1) (i32.const 65537))", Trap, "outside memory");
}

#[test]
fn endless_loop_runs_out_of_fuel() {
    fails_as("(loop $l (br $l))", FailureKind::OutOfFuel, "1000000 units");
}

#[test]
fn endless_loop_of_host_calls_runs_out_of_fuel() {
    for call in [
        WRITE,
        "(drop (call $get (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)))",
        "(drop (call $context (i32.const 0) (i32.const 64)))",
        "(call $log (i32.const 3) (i32.const 0) (i32.const 0))",
        "(call $respond (i32.const 0) (i32.const 60000))",
        "(drop (call $scan_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)))
         (call $scan_close (i32.const 0))",
    ] {
        fails_as(&format!("(loop $l {call} (br $l))"), FailureKind::OutOfFuel, "units of fuel");
    }
}

#[test]
fn asking_for_a_command_again_and_again_does_not_refill_fuel() {
    let module = module(
        r#"(memory (export "memory") 1)
           (func (export "apply")
             (loop $l (drop (call $next_command (i32.const 0) (i32.const 0))) (br $l)))
           (func (export "query"))"#,
    );
    let (results, _) = apply(&module, &[b"", b"x"]);
    assert_eq!(results[0], ok(b""));
    assert_eq!(results[1].clone().unwrap_err().kind, FailureKind::OutOfFuel);
}

#[test]
fn long_copies_cost_what_they_take() {
    fails_as(
        "(loop $l (memory.copy (i32.const 0) (i32.const 1) (i32.const 65535))
         (local.set $i (i32.add (local.get $i) (i32.const 1)))
         (br_if $l (i32.lt_u (local.get $i) (i32.const 100))))",
        FailureKind::OutOfFuel,
        "units of fuel",
    );
}

#[test]
fn recursion_without_end_is_a_failed_command() {
    let module = each_with(
        r#"(memory (export "memory") 1)
           (func $deep (param i32) (result i32)
             (i32.add (i32.const 1) (call $deep (local.get 0))))"#,
        "(drop (call $deep (i32.const 1)))",
    );
    assert_eq!(failure(&module).kind, FailureKind::CallDepth);
    // Indirectly and with large frames as well.
    let locals = "(local i64)".repeat(1000);
    let touch: String =
        (0..1000).map(|i| format!("(local.set {i} (i64.load (i32.const {i})))")).collect();
    let sum: String =
        (0..1000).map(|i| format!("(i64.store (i32.const {}) (local.get {i}))", i * 8)).collect();
    let module = each_with(
        &format!(
            r#"(memory (export "memory") 1) (table 1 funcref) (elem (i32.const 0) $deep)
               (func $deep {locals} {touch} (call_indirect (i32.const 0)) {sum})"#
        ),
        "(call $deep)",
    );
    assert_eq!(failure(&module).kind, FailureKind::CallDepth);
}

#[test]
fn memory_bomb_hits_the_limit() {
    fails_as(
        "(loop $l (drop (memory.grow (i32.const 1))) (br $l))",
        FailureKind::MemoryLimit,
        "its limit is 2097152",
    );
    fails_as("(drop (memory.grow (i32.const 1000)))", FailureKind::MemoryLimit, "65601536");
    // Asking costs by the page, granted or not.
    fails_as("(drop (memory.grow (i32.const -1)))", FailureKind::OutOfFuel, "1000000 units");
}

#[test]
fn growth_beyond_the_modules_own_maximum_is_a_failure_too() {
    let module =
        each_with(r#"(memory (export "memory") 1 2)"#, "(drop (memory.grow (i32.const 2)))");
    let failure = failure(&module);
    assert_eq!(failure.kind, FailureKind::MemoryLimit);
    assert!(failure.message.ends_with("its limit is 131072"), "{failure}");
}

#[test]
fn table_bomb_hits_the_limit() {
    let module = each_with(
        r#"(memory (export "memory") 1) (table $t 1 funcref)"#,
        "(loop $l (drop (table.grow $t (ref.null func) (i32.const 10000))) (br $l))",
    );
    assert_eq!(failure(&module).kind, FailureKind::MemoryLimit);
}

#[test]
fn module_that_starts_above_the_limit_fails_every_command() {
    let module = each_with(r#"(memory (export "memory") 33)"#, "");
    let (results, _) = apply(&module, &[b"", b""]);
    assert!(results.iter().all(|r| r.clone().unwrap_err().kind == FailureKind::MemoryLimit));
    // Above half of it, commands run on fresh instances only, but they run.
    let module = each_with(r#"(memory (export "memory") 32)"#, "");
    assert_eq!(apply(&module, &[b"", b""]).0, [ok(b""), ok(b"")]);
}

#[test]
fn initial_data_outside_memory_fails_every_command() {
    let module = each_with(r#"(memory (export "memory") 1) (data (i32.const 65536) "x")"#, "");
    assert_eq!(failure(&module).kind, FailureKind::Trap);
}

#[test]
fn calls_that_the_abi_forbids() {
    let bad = |body: &str, words: &str| fails_as(body, FailureKind::BadCall, words);
    // Outside memory, with huge and with negative lengths.
    bad("(call $respond (i32.const 65536) (i32.const 1))", "response: 1 bytes at 65536");
    bad("(call $respond (i32.const 1) (i32.const 65536))", "outside the memory of 65536");
    bad("(call $respond (i32.const 0) (i32.const -1))", "outside");
    bad(
        "(call $put (i32.const 0) (i32.const -1) (i32.const 0) (i32.const 0))",
        "allowed are 65567",
    );
    bad(
        "(call $put (i32.const 0) (i32.const 65568) (i32.const 0) (i32.const 0))",
        "a key of 65568",
    );
    bad(
        "(call $put (i32.const 0) (i32.const 1) (i32.const 0) (i32.const -1))",
        "allowed are 9437184",
    );
    bad(
        "(call $put (i32.const 0) (i32.const 1) (i32.const 65000) (i32.const 1000))",
        "value: 1000",
    );
    bad("(call $delete (i32.const -1) (i32.const 2))", "key: 2 bytes at 4294967295");
    bad("(drop (call $get (i32.const 0) (i32.const 1) (i32.const 0) (i32.const -1)))", "get: ");
    bad(
        "(drop (call $get_many (i32.const 0) (i32.const -8) (i32.const 0) (i32.const 0)))",
        "keys: ",
    );
    bad("(drop (call $context (i32.const 65500) (i32.const 64)))", "context: ");
    bad("(drop (call $next_command (i32.const 65500) (i32.const 64)))", "next_command: ");
    let exchange = |arguments: [i32; 5]| {
        let arguments = arguments.map(|argument| format!("(i32.const {argument})")).concat();
        format!("(drop (call $exchange {arguments}))")
    };
    bad(&exchange([65500, 64, 0, 64, 0]), "response: 64 bytes at 65500");
    bad(&exchange([0, 0, 65500, 64, 0]), "exchange: ");
    bad(&exchange([0, 8, 0, 64, 65513]), "place: 24 bytes at 65513");
    bad("(call $fail (i32.const 1) (i32.const 65500) (i32.const 64))", "message: ");
    bad("(call $abort (i32.const 65500) (i32.const 64))", "panic text: ");
    bad("(call $log (i32.const 1) (i32.const 65500) (i32.const 64))", "log line: ");
    bad("(call $log (i32.const 4) (i32.const 0) (i32.const 0))", "unknown level 4");
    // Lists and scans.
    bad(
        "(drop (call $get_many (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 0)))",
        "cut short",
    );
    bad(
        "(i32.store (i32.const 0) (i32.const 9))
         (drop (call $get_many (i32.const 0) (i32.const 8) (i32.const 0) (i32.const 0)))",
        "cut short",
    );
    let open = "(drop (call $scan_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)))";
    bad(&open.repeat(17), "more than 16 scans");
    bad(
        &open.replace("(i32.const -1) (i32.const 0)", "(i32.const -1) (i32.const 2)"),
        "unknown flags",
    );
    bad(&open.replace("(i32.const -1)", "(i32.const -2)"), "a key of");
    for handle in [0, 1, 15, 16, -1] {
        let next =
            format!("(drop (call $scan_next (i32.const {handle}) (i32.const 0) (i32.const 9)))");
        bad(&next, "no scan is open");
        bad(&format!("(call $scan_close (i32.const {handle}))"), "no scan is open");
    }
    bad(
        &format!("{open} (call $scan_close (i32.const 0)) (call $scan_close (i32.const 0))"),
        "no scan",
    );
}

#[test]
fn response_that_is_too_large_is_refused() {
    let module = each_with(
        r#"(memory (export "memory") 300)"#,
        "(call $respond (i32.const 0) (i32.add (i32.const 1) (i32.shl (i32.const 1) (i32.const 24))))",
    );
    let storage = Box::new(TestStorage::default());
    let outcome = executor().apply(&module, &Limits::default(), vec![call("")], storage).unwrap();
    let failure = outcome.results[0].clone().unwrap_err();
    assert_eq!(failure.kind, FailureKind::BadCall);
    assert!(failure.message.contains("allowed are 16777216"), "{failure}");
}

#[test]
fn scans_end_with_their_command() {
    let module = each(
        r#"(if (local.get $n) (then
             (drop (call $scan_next (i32.const 0) (i32.const 0) (i32.const 9)))))
           (drop (call $scan_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)))"#,
    );
    let (results, _) = apply(&module, &[b"", b"x", b""]);
    assert_eq!(results[0], ok(b""));
    assert_eq!(results[1].clone().unwrap_err().kind, FailureKind::BadCall);
    assert_eq!(results[2], ok(b""));
}

#[test]
fn panic_text_is_recorded() {
    let failure = fails(
        r#"(i64.store (i32.const 0) (i64.const 0x21736e696f63206f)) ;; "o coins!"
           (i32.store8 (i32.const 8) (i32.const 0xff))
           (call $abort (i32.const 0) (i32.const 9))"#,
    );
    assert_eq!((failure.kind, &*failure.message), (FailureKind::Panic, "o coins!\u{fffd}"));
}

#[test]
fn export_that_takes_no_command_is_a_bad_call() {
    let module =
        module(r#"(memory (export "memory") 1) (func (export "apply")) (func (export "query"))"#);
    let (results, _) = apply(&module, &[b"", b""]);
    for result in results {
        let failure = result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::BadCall);
        assert!(failure.message.contains("before it took a command"), "{failure}");
    }
}

/// `apply` that runs `before` before its first pull and `after` once the batch is over.
fn around(before: &str, after: &str) -> crate::wasm::PluginModule {
    module(&format!(
        r#"(memory (export "memory") 1)
           (func (export "apply") (local $n i64)
             {before}
             (loop $pull
               (local.set $n (call $next_command (i32.const 4096) (i32.const 4096)))
               (if (i64.lt_s (local.get $n) (i64.const 0)) (then {after} return))
               (call $respond (i32.const 4096) (i32.wrap_i64 (local.get $n)))
               (br $pull)))
           (func (export "query"))"#
    ))
}

#[test]
fn trap_before_the_first_pull_fails_each_command() {
    for before in [
        "unreachable",
        "(loop $l (br $l))",
        WRITE,
        "(drop (call $context (i32.const 0) (i32.const 64)))",
    ] {
        let (results, storage) = apply(&around(before, ""), &[b"a", b"b"]);
        assert!(results.iter().all(Result::is_err), "{before}");
        assert!(storage.rows().is_empty());
    }
}

#[test]
fn trap_after_the_last_pull_fails_nothing() {
    for after in
        ["unreachable", "(loop $l (br $l))", WRITE, "(call $respond (i32.const 0) (i32.const 1))"]
    {
        let mut executor = executor();
        let module = around("", after);
        let storage = TestStorage::default();
        let (results, storage) = apply_to(&mut executor, &module, &[b"a", b"b"], storage);
        assert_eq!(results, [ok(b"a"), ok(b"b")], "{after}");
        assert!(storage.rows().is_empty());
        assert_eq!(executor.kept_memory_bytes(), 0, "an instance that trapped was kept");
    }
}

#[test]
fn pulling_on_after_the_end_gives_the_end_again() {
    let after = "(drop (call $next_command (i32.const 0) (i32.const 0))) (br $pull)";
    let (results, _) = apply(&around("", after), &[b"a", b"b"]);
    assert_eq!(results, [ok(b"a"), ok(b"b")]);
}

#[test]
fn trap_starts_a_fresh_instance_for_those_that_follow() {
    // Counts in a static; on "t" it traps.
    let module = each(
        r#"(i32.store (i32.const 0) (i32.add (i32.const 1) (i32.load (i32.const 0))))
           (if (i32.eq (i32.load8_u (i32.const 4096)) (i32.const 0x74)) (then unreachable))
           (call $respond (i32.const 0) (i32.const 1))"#,
    );
    let (results, _) = apply(&module, &[b"a", b"a", b"t", b"a", b"a"]);
    assert_eq!(results[..2], [ok(&[1]), ok(&[2])]);
    assert_eq!(results[2].clone().unwrap_err().kind, FailureKind::Trap);
    assert_eq!(results[3..], [ok(&[1]), ok(&[2])]);
}

#[test]
fn statics_that_remember_do_not_survive_without_reuse() {
    let module = each(
        r#"(i32.store (i32.const 0) (i32.add (i32.const 1) (i32.load (i32.const 0))))
           (call $respond (i32.const 0) (i32.const 1))"#,
    );
    let mut executor = Executor::new(engine(), Reuse::Never).unwrap();
    let (results, _) = apply_to(&mut executor, &module, &[b"", b"", b""], TestStorage::default());
    assert_eq!(results, [ok(&[1]), ok(&[1]), ok(&[1])]);
}

#[test]
fn nan_bits_are_the_same_everywhere() {
    // 0/0 with a sign, and an arithmetic NaN with a payload, both through f64.add.
    let module = each(
        r#"(f64.store (i32.const 0) (f64.add (f64.const -nan:0x123) (f64.const 1)))
           (f64.store (i32.const 8) (f64.neg (f64.div (f64.const 0) (f64.const 0))))
           (call $respond (i32.const 0) (i32.const 16))"#,
    );
    let (results, _) = apply(&module, &[b""]);
    let bytes = results[0].clone().unwrap();
    assert_eq!(bytes[..8], 0x7ff8_0000_0000_0000u64.to_le_bytes());
    assert_eq!(bytes[8..], 0xfff8_0000_0000_0000u64.to_le_bytes());
}
