//! What well-behaved plugins can count on.

use super::support::*;
use crate::wasm::state::{LogBudget, LogTurn};
use crate::wasm::{Call, Executor, FailureKind, HostError, PluginModule, QueryResult, Reuse};

const PUT_PAYLOAD: &str = r#"
    ;; The first byte of the payload is the key, the rest the value.
    (call $put (i32.const 4096) (i32.const 1) (i32.const 4097)
      (i32.sub (local.get $n) (i32.const 1)))
    (call $respond (i32.const 4096) (local.get $n))"#;

const GET_PAYLOAD: &str = r#"
    (local.set $size (call $get (i32.const 4096) (local.get $n) (i32.const 8192) (i32.const 16)))
    (if (i64.lt_s (local.get $size) (i64.const 0))
      (then (call $fail (i32.const 404) (i32.const 4096) (local.get $n)) return))
    (call $respond (i32.const 8192) (i32.wrap_i64 (local.get $size)))"#;

#[test]
fn commands_write_and_respond_in_order() {
    let (results, storage) = apply(&each(PUT_PAYLOAD), &[b"a1", b"b2", b"a3"]);
    assert_eq!(results, [ok(b"a1"), ok(b"b2"), ok(b"a3")]);
    assert_eq!(storage.value(b"a"), Some(&b"3"[..]));
    assert_eq!(storage.value(b"b"), Some(&b"2"[..]));
}

#[test]
fn command_sees_writes_of_the_batch_before_it_in_its_slot_only() {
    // Odd lengths write, even lengths read.
    let both = format!(
        "(if (i32.and (local.get $n) (i32.const 1)) (then {GET_PAYLOAD}) (else {PUT_PAYLOAD}))"
    );
    let module = each(&both);
    let elsewhere = Call { slot: SLOT + 1, ..call("a") };
    let calls = vec![call("a1"), call("a"), elsewhere];
    let outcome =
        executor().apply(&module, &limits(), calls, Box::new(TestStorage::default())).unwrap();
    assert_eq!(outcome.results[..2], [ok(b"a1"), ok(b"1")]);
    assert_eq!(outcome.results[2].clone().unwrap_err().code, 404);
    TestStorage::back(outcome.storage);
}

#[test]
fn failed_command_keeps_no_writes_and_its_code_wins_over_a_response() {
    let module = each(&format!(
        r#"{PUT_PAYLOAD} (call $fail (i32.const 7) (i32.const 4096) (local.get $n))"#
    ));
    let (results, storage) = apply(&module, &[b"no"]);
    let failure = results[0].clone().unwrap_err();
    assert_eq!((failure.kind, failure.code, &*failure.message), (FailureKind::Failed, 7, "no"));
    assert!(storage.rows().is_empty());
}

#[test]
fn messages_are_cut_at_a_character() {
    let module = each_with(
        r#"(memory (export "memory") 2)"#,
        r#"(local.set $i (i32.const 65536))
           (loop $fill
             (i32.store16 (local.get $i) (i32.const 0xa9c3))
             (local.set $i (i32.add (local.get $i) (i32.const 2)))
             (br_if $fill (i32.lt_u (local.get $i) (i32.const 80000))))
           (call $fail (i32.const 1) (i32.const 65535) (i32.const 9000))"#,
    );
    let (results, _) = apply(&module, &[b""]);
    let message = results[0].clone().unwrap_err().message;
    assert_eq!(message, format!("\0{}", "é".repeat(2047)));
}

#[test]
fn value_that_does_not_fit_is_not_written() {
    let storage = TestStorage::with(&[(b"k", &[b'v'; 17])]);
    let module = each(
        r#"(local.set $size (call $get (i32.const 4096) (i32.const 1) (i32.const 8192) (i32.const 16)))
           (i64.store (i32.const 0) (local.get $size))
           (call $respond (i32.const 0) (i32.const 8))
           (if (i32.load8_u (i32.const 8192)) (then unreachable))"#,
    );
    let (results, _) = apply_to(&mut executor(), &module, &[b"k"], storage);
    assert_eq!(results, [ok(&17u64.to_le_bytes())]);
}

#[test]
fn get_many_answers_in_the_order_asked() {
    let storage = TestStorage::with(&[(b"a", b"1"), (b"ccc", b"333")]);
    let module = each(
        r#"(local.set $size (call $get_many (i32.const 4096) (local.get $n) (i32.const 8192) (i32.const 4096)))
           (call $respond (i32.const 8192) (i32.wrap_i64 (local.get $size)))"#,
    );
    let keys = [b"\x03\0\0\0ccc".as_slice(), b"\0\0\0\0", b"\x01\0\0\0a"].concat();
    let (results, _) = apply_to(&mut executor(), &module, &[&keys, b""], storage);
    let expected = [b"\x03\0\0\x00333".as_slice(), b"\xff\xff\xff\xff", b"\x01\0\0\x001"].concat();
    assert_eq!(results, [ok(&expected), ok(b"")]);
}

#[test]
fn get_many_writes_nothing_if_the_whole_does_not_fit() {
    let storage = TestStorage::with(&[(b"a", b"1"), (b"b", b"22")]);
    let module = each(
        r#"(i64.store (i32.const 8200)
             (call $get_many (i32.const 4096) (local.get $n) (i32.const 8192) (i32.const 8)))
           (call $respond (i32.const 8192) (i32.const 16))"#,
    );
    let keys = b"\x01\0\0\0a\x01\0\0\0b";
    let (results, _) = apply_to(&mut executor(), &module, &[keys], storage);
    assert_eq!(results, [ok(&[[0; 8], 11u64.to_le_bytes()].concat())]);
}

/// Scans the slot with the payload's first byte as flags and its second as buffer size, and
/// responds with the sizes that `scan_next` returned and the rows of the last call but one.
const SCAN: &str = r#"
    (local.set $i (call $scan_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)
      (i32.load8_u (i32.const 4096))))
    (i32.store (i32.const 0) (i32.const 16))
    (loop $rows
      (local.set $size (call $scan_next (local.get $i) (i32.const 8192) (i32.load8_u (i32.const 4097))))
      (i32.store8 (i32.load (i32.const 0)) (i32.wrap_i64 (local.get $size)))
      (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
      (if (i64.gt_u (local.get $size) (i64.extend_i32_u (i32.load8_u (i32.const 4097)))) (then
        (call $respond (i32.const 16) (i32.sub (i32.load (i32.const 0)) (i32.const 16))) return))
      (br_if $rows (i64.gt_s (local.get $size) (i64.const 0))))
    (memory.copy (i32.load (i32.const 0)) (i32.const 8192) (i32.const 10))
    (call $respond (i32.const 16) (i32.sub (i32.load (i32.const 0)) (i32.const 6)))"#;

#[test]
fn scan_gives_whole_rows_as_many_as_fit() {
    let rows: &[(&[u8], &[u8])] = &[(b"a", b"1"), (b"b", b"22"), (b"c", b"3")];
    let module = each(SCAN);
    let storage = TestStorage::with(rows);
    let (results, _) =
        apply_to(&mut executor(), &module, &[&[0, 25], &[1, 21], &[0, 9], &[0, 10]], storage);
    // Two rows, then one, then the end; the buffer still holds the last row.
    assert_eq!(results[0], ok(b"\x15\x0a\0\x01\0\0\0\x01\0\0\0c3"));
    assert_eq!(results[1], ok(b"\x15\x0a\0\x01\0\0\0\x01\0\0\0a1"));
    // Not even the first row fits: its size.
    assert_eq!(results[2], ok(&[10]));
    // The first does, the second does not.
    assert_eq!(results[3], ok(&[10, 11]));
}

#[test]
fn scan_does_not_see_later_writes_of_its_command() {
    let module = each(
        r#"(local.set $i (call $scan_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)))
           (call $put (i32.const 4096) (i32.const 1) (i32.const 4096) (i32.const 1))
           (i64.store (i32.const 0) (call $scan_next (local.get $i) (i32.const 8192) (i32.const 100)))
           (call $scan_close (local.get $i))
           (call $respond (i32.const 0) (i32.const 8))"#,
    );
    let (results, _) = apply(&module, &[b"k"]);
    assert_eq!(results, [ok(&[0; 8])]);
}

#[test]
fn context_tells_where_and_when() {
    let module = each(
        r#"(local.set $size (call $context (i32.const 0) (i32.const 64)))
           (call $respond (i32.const 0) (i32.wrap_i64 (local.get $size)))"#,
    );
    let (results, _) = apply(&module, &[b""]);
    let mut expected = Vec::new();
    expected.extend_from_slice(&9u64.to_le_bytes());
    expected.extend_from_slice(&1_700_000_000_000u64.to_le_bytes());
    expected.extend_from_slice(&SLOT.to_le_bytes());
    expected.extend_from_slice(&[0; 12]);
    expected.extend_from_slice(&[5; 32]);
    assert_eq!(results, [ok(&expected)]);
}

#[test]
fn command_that_does_not_fit_is_offered_again() {
    let module = module(
        r#"(memory (export "memory") 1)
           (func (export "apply") (local $cap i32) (local $n i64)
             (loop $pull
               (local.set $n (call $next_command (i32.const 0) (local.get $cap)))
               (if (i64.lt_s (local.get $n) (i64.const 0)) (then return))
               (if (i64.gt_u (local.get $n) (i64.extend_i32_u (local.get $cap))) (then
                 (local.set $cap (i32.wrap_i64 (local.get $n))) (br $pull)))
               (call $respond (i32.const 0) (i32.wrap_i64 (local.get $n)))
               (br $pull)))
           (func (export "query"))"#,
    );
    let (results, _) = apply(&module, &[b"", b"abc", b"a", b"abcdef"]);
    assert_eq!(results, [ok(b""), ok(b"abc"), ok(b"a"), ok(b"abcdef")]);
}

/// A module that passes commands on by `exchange` alone: each answers with `$len` bytes at `$answer`,
/// which `body` may set. The command lies at 4096, its place at 64.
fn exchanges(cap: u32, body: &str) -> PluginModule {
    module(&format!(
        r#"(memory (export "memory") 1)
           (func $run (local $n i64) (local $answer i32) (local $len i32)
             (loop $pull
               (local.set $n (call $exchange (local.get $answer) (local.get $len)
                 (i32.const 4096) (i32.const {cap}) (i32.const 64)))
               (local.set $len (i32.const 0))
               (if (i64.lt_s (local.get $n) (i64.const 0)) (then return))
               (if (i64.gt_s (local.get $n) (i64.const {cap})) (then
                 (local.set $n (call $next_command (i32.const 4096) (i32.const 1000)))))
               {body}
               (br $pull)))
           (export "apply" (func $run)) (export "query" (func $run))"#
    ))
}

#[test]
fn an_exchange_answers_and_gives_the_next_command_with_its_place() {
    let module =
        exchanges(64, "(local.set $answer (i32.const 64)) (local.set $len (i32.const 24))");
    let mut place = 9_u64.to_le_bytes().to_vec();
    place.extend_from_slice(&1_700_000_000_000_u64.to_le_bytes());
    place.extend_from_slice(&SLOT.to_le_bytes());
    place.extend_from_slice(&[0; 4]);
    assert_eq!(apply(&module, &[b"a", b"", b"c"]).0, vec![ok(&place); 3]);
    // The command's own bytes.
    let echo =
        "(local.set $answer (i32.const 4096)) (local.set $len (i32.wrap_i64 (local.get $n)))";
    let results = apply(&exchanges(64, echo), &[b"a", b"", b"c"]).0;
    assert_eq!(results, [ok(b"a"), ok(b""), ok(b"c")]);
    // Of those that did not fit the response before was taken all the same, once.
    let results = apply(&exchanges(2, echo), &[b"a", b"long", b"longer", b"d"]).0;
    assert_eq!(results, [ok(b"a"), ok(b"long"), ok(b"longer"), ok(b"d")]);
}

#[test]
fn the_response_of_an_exchange_counts_and_not_one_before_it() {
    // Answers with the command's first byte, unless that is a point, after it has answered "x".
    let module = exchanges(
        64,
        r#"(i32.store8 (i32.const 0) (i32.const 120))
           (if (i32.ne (i32.load8_u (i32.const 4096)) (i32.const 46)) (then
             (call $respond (i32.const 0) (i32.const 1))
             (local.set $answer (i32.const 4096)) (local.set $len (i32.const 1))))
           (if (i32.eq (i32.load8_u (i32.const 4097)) (i32.const 120)) (then
             (local.set $len (i32.const 0))))"#,
    );
    let results = apply(&module, &[b"a ", b". ", b"bx", b". "]).0;
    assert_eq!(results, [ok(b"a"), ok(b""), ok(b"x"), ok(b"")]);
}

#[test]
fn an_exchange_with_an_answer_to_nothing_is_a_bad_call() {
    let module = module(
        r#"(memory (export "memory") 1) (func (export "query"))
           (func (export "apply")
             (drop (call $exchange (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 64)
               (i32.const 0))))"#,
    );
    let failure = failure(&module);
    assert_eq!(failure.kind, FailureKind::BadCall);
    assert!(failure.message.contains("`exchange` was called while no command"), "{failure}");
}

#[test]
fn apply_may_return_before_the_batch_is_over() {
    let module = module(
        r#"(memory (export "memory") 1)
           (func (export "apply")
             (call $respond (i32.const 0)
               (i32.wrap_i64 (call $next_command (i32.const 0) (i32.const 100)))))
           (func (export "query"))"#,
    );
    let (results, _) = apply(&module, &[b"a", b"b", b"c"]);
    assert_eq!(results, [ok(b"a"), ok(b"b"), ok(b"c")]);
}

#[test]
fn empty_buffer_may_point_anywhere() {
    let module = each(
        r#"(call $put (i32.const -1) (i32.const 0) (i32.const 0xaaaaaaaa) (i32.const 0))
           (call $respond (i32.const -1) (i32.const 0))"#,
    );
    let (results, storage) = apply(&module, &[b""]);
    assert_eq!(results, [ok(b"")]);
    assert_eq!(storage.value(b""), Some(&b""[..]));
}

#[test]
fn logging_changes_nothing() {
    let module = each(
        r#"(loop $again
             (call $log (i32.rem_u (local.get $i) (i32.const 4)) (i32.const 4096) (i32.const 2000))
             (local.set $i (i32.add (local.get $i) (i32.const 1)))
             (br_if $again (i32.lt_u (local.get $i) (i32.const 300))))
           (call $respond (i32.const 4096) (local.get $n))"#,
    );
    assert_eq!(apply(&module, &[b"x"]).0, [ok(b"x")]);
}

#[test]
fn log_lines_are_few_and_those_missing_are_announced() {
    let mut budget = LogBudget::default();
    let turns: Vec<_> = (0..150).map(|_| budget.take()).collect();
    assert!(turns[..99].iter().all(|turn| *turn == LogTurn::Log));
    assert_eq!(turns[99], LogTurn::LogAndWarn);
    assert!(turns[100..].iter().all(|turn| *turn == LogTurn::Drop));
}

#[test]
fn query_reads_and_may_not_write() {
    let storage = TestStorage::with(&[(b"k", b"v")]);
    let results = query(&each(GET_PAYLOAD), None, &[b"k", b"none"], storage.clone());
    assert_eq!(results[0], QueryResult::Done(ok(b"v")));
    assert!(matches!(&results[1], QueryResult::Done(Err(failure)) if failure.code == 404));
    for write in [PUT_PAYLOAD, "(call $delete (i32.const 4096) (i32.const 1))"] {
        let results = query(&each(write), None, &[b"k1"], storage.clone());
        let QueryResult::Done(Err(failure)) = &results[0] else { panic!("{results:?}") };
        assert_eq!(failure.kind, FailureKind::BadCall);
        assert!(failure.message.contains("only reads"), "{failure}");
    }
}

#[test]
fn query_over_the_inline_budget_is_told_apart() {
    // As many rounds of 4 as the first byte says thousands.
    let module = each(
        r#"(local.set $i (i32.mul (i32.load8_u (i32.const 4096)) (i32.const 1000)))
           (loop $spin
             (local.set $i (i32.sub (local.get $i) (i32.const 1)))
             (br_if $spin (i32.gt_s (local.get $i) (i32.const 0))))
           (call $respond (i32.const 4096) (i32.const 1))"#,
    );
    let payloads: [&[u8]; 3] = [&[1], &[200], &[2]];
    let done = |byte| QueryResult::Done(ok(&[byte]));
    for inline in [20_000, 600_000] {
        let results = query(&module, Some(inline), &payloads, TestStorage::default());
        assert_eq!(results, [done(1), QueryResult::OverBudget, done(2)], "budget {inline}");
    }
    // Without a budget, or with one beyond the limit, it runs to its end.
    for inline in [None, Some(u64::MAX)] {
        let results = query(&module, inline, &payloads[..1], TestStorage::default());
        assert_eq!(results, [done(1)]);
    }
    let results = query(&module, None, &[&[255]], TestStorage::default());
    assert!(matches!(&results[0], QueryResult::Done(Err(f)) if f.kind == FailureKind::OutOfFuel));
}

#[test]
fn migrate_carries_a_slot_over_or_leaves_it_as_it_was() {
    let migrate = |body: &str| {
        module(&format!(
            r#"(memory (export "memory") 1) (func (export "apply")) (func (export "query"))
               (func (export "migrate") {body})"#
        ))
    };
    let write = "(call $put (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))";
    let pull = "(drop (call $next_command (i32.const 64) (i32.const 64)))";
    let run = |body: &str| {
        let storage = Box::new(TestStorage::default());
        let outcome = executor().migrate(&migrate(body), &limits(), call("k"), storage).unwrap();
        (outcome.results[0].clone(), TestStorage::back(outcome.storage).rows().len(), outcome.fuel)
    };
    let (result, rows, fuel) = run(&format!("{pull} {write} {pull}"));
    assert_eq!((result, rows), (ok(b""), 1));
    assert!((500..1_000).contains(&fuel), "{fuel}");
    let (result, rows, _) = run(&format!("{pull} {write} unreachable"));
    assert_eq!((result.unwrap_err().kind, rows), (FailureKind::Trap, 0));
    // One that does not look at what it is to do.
    assert_eq!(run(write).0.unwrap_err().kind, FailureKind::BadCall);
    let (result, rows, fuel) = run(&format!("{pull} (loop br 0)"));
    assert_eq!((result.unwrap_err().kind, rows), (FailureKind::OutOfFuel, 0));
    assert_eq!(fuel, limits().fuel_per_command);
}

#[test]
fn storage_failure_is_the_nodes_not_the_plugins() {
    let mut storage = TestStorage::default();
    storage.broken = true;
    let outcome =
        executor().apply(&each(PUT_PAYLOAD), &limits(), vec![call("k1")], Box::new(storage));
    assert!(matches!(outcome, Err(HostError::Storage(_))));
}

#[test]
fn executor_keeps_an_instance_and_gives_it_back() {
    let mut executor = executor();
    let module = each(PUT_PAYLOAD);
    apply_to(&mut executor, &module, &[b"k1"], TestStorage::default());
    assert_eq!(executor.kept_memory_bytes(), 64 << 10);
    executor.release();
    assert_eq!(executor.kept_memory_bytes(), 0);
}

#[test]
fn kept_instance_gets_half_of_the_memory() {
    let mut executor = executor();
    for (pages, kept) in [(10, 11 << 16), (20, 0)] {
        let module = each(&format!("(drop (memory.grow (i32.const {pages})))"));
        let (results, _) = apply_to(&mut executor, &module, &[b""], TestStorage::default());
        assert_eq!(results, [ok(b"")]);
        assert_eq!(executor.kept_memory_bytes(), kept, "{pages} of 32 pages");
        executor.release();
    }
}

#[test]
fn kept_instances_are_few() {
    let mut executor = executor();
    for i in 0..20 {
        let module = each(&format!("(drop (i32.const {i}))"));
        apply_to(&mut executor, &module, &[b""], TestStorage::default());
        assert!(executor.kept_memory_bytes() <= 4 * (64 << 10));
    }
}

#[test]
fn executors_beyond_the_engines_room_are_refused() {
    let engine = crate::wasm::PluginEngine::new(1).unwrap();
    let first = Executor::new(&engine, Reuse::Keep).unwrap();
    let second = Executor::new(&engine, Reuse::Keep);
    assert!(matches!(second, Err(HostError::TooManyExecutors { max: 1 })));
    drop(first);
    Executor::new(&engine, Reuse::Keep).unwrap();
}
