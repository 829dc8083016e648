//! Fuel, to the unit: a replica that counts differently fails different commands.

use super::support::*;
use crate::wasm::{Executor, Limits, PluginModule, Reuse};

/// The least fuel that a command with this body succeeds with, on a storage with two rows.
fn needs(body: &str) -> u64 {
    let fields = r#"(memory (export "memory") 1) (table $t 9 funcref) (func $nothing)"#;
    least(&each_with(fields, body))
}

/// The least fuel that a command of this module succeeds with.
fn least(module: &PluginModule) -> u64 {
    let mut executor = Executor::new(engine(), Reuse::Never).unwrap();
    let (mut too_little, mut enough) = (0, 1 << 20);
    while enough - too_little > 1 {
        let fuel = (too_little + enough) / 2;
        if succeeds(&mut executor, module, fuel) { enough = fuel } else { too_little = fuel }
    }
    enough
}

fn succeeds(executor: &mut Executor, module: &PluginModule, fuel_per_command: u64) -> bool {
    let limits = Limits { fuel_per_command, ..limits() };
    let storage = TestStorage::with(&[(b"aaaaaaaa", &[1; 24]), (b"bbbbbbbb", &[2; 24])]);
    let calls = vec![call("aaaaaaaa")];
    executor.apply(module, &limits, calls, Box::new(storage)).unwrap().results[0].is_ok()
}

/// What `body` costs on top of an empty command.
fn costs(body: &str, units: u64) {
    assert_eq!(needs(body) - needs(""), units, "{body}");
}

#[test]
fn instructions_cost_one_and_structure_nothing() {
    costs("nop nop (block) (loop)", 0);
    costs("(drop (i32.const 1))", 1);
    costs("(drop (i64.mul (i64.const 1) (i64.const 2)))", 3);
    costs("(if (i32.const 1) (then (drop (i32.const 1))) (else (drop (i32.const 1))))", 3);
    costs("(block (br 0))", 1);
    costs("return", 1);
    costs("(drop (f64.sqrt (f64.const 2)))", 2);
    costs("(drop (i8x16.add (v128.const i64x2 1 2) (v128.const i64x2 1 2)))", 3);
}

#[test]
fn calling_a_function_costs_one_for_entering_it() {
    costs("(call $nothing)", 2);
}

#[test]
fn bulk_instructions_cost_what_they_move() {
    costs("(memory.copy (i32.const 0) (i32.const 100) (i32.const 50))", 4 + 50);
    costs("(memory.fill (i32.const 0) (i32.const 100) (i32.const 50))", 4 + 50);
    costs("(table.fill $t (i32.const 0) (ref.null func) (i32.const 5))", 4 + 5);
    costs("(drop (memory.grow (i32.const 2)))", 2 + 2 * 255);
}

#[test]
fn host_calls_cost_fifty_and_what_they_move() {
    // The call itself and its arguments are instructions.
    let ptr = "(i32.const 4096)";
    costs(&format!("(call $respond {ptr} (i32.const 17))"), 3 + 50 + 2);
    costs(&format!("(call $log (i32.const 3) {ptr} (i32.const 8))"), 4 + 50 + 1);
    costs(&format!("(drop (call $context {ptr} (i32.const 64)))"), 3 + 50 + 8);
    costs(&format!("(call $put {ptr} (i32.const 8) {ptr} (i32.const 24))"), 5 + 50 + 400 + 4);
    costs(&format!("(call $delete {ptr} (i32.const 8))"), 3 + 50 + 400 + 1);
}

#[test]
fn an_exchange_costs_one_call_and_all_that_it_moves() {
    let pull = needs("(drop (call $next_command (i32.const 4096) (i32.const 64)))");
    let exchange = |len: u32| {
        format!(
            "(drop (call $exchange (i32.const 4096) (i32.const {len}) (i32.const 4096) (i32.const 64)
               (i32.const 0)))"
        )
    };
    assert_eq!(needs(&exchange(0)) - pull, 3);
    assert_eq!(needs(&exchange(17)) - pull, 3 + 2);
    // The command comes with its place, 24 bytes, and pays for it.
    let with_place = |place: u32| {
        module(&format!(
            r#"(memory (export "memory") 1) (func (export "query"))
               (func (export "apply")
                 (loop $pull
                   (br_if $pull (i64.ge_s (i64.const 0) (call $exchange (i32.const 0) (i32.const 0)
                     (i32.const 4096) (i32.const 64) (i32.const {place})))))
                 (call $respond (i32.const 0) (i32.const 0))
                 (drop (call $next_command (i32.const 0) (i32.const 0))))"#
        ))
    };
    assert_eq!(least(&with_place(64)) - least(&with_place(0)), 3);
}

#[test]
fn reads_cost_by_what_they_find() {
    let ptr = "(i32.const 4096)";
    let get = |len: u32, cap: u32| {
        format!("(drop (call $get {ptr} (i32.const {len}) (i32.const 0) (i32.const {cap})))")
    };
    costs(&get(8, 100), 5 + 250 + (8 + 24) / 8);
    // Found, but no room for it: it was read all the same.
    costs(&get(8, 0), 5 + 250 + (8 + 24) / 8);
    costs(&get(7, 100), 5 + 250);
    // One list of 12 bytes; the answer is a length and the value.
    costs(
        "(i32.store (i32.const 4092) (i32.const 8))
         (drop (call $get_many (i32.const 4092) (i32.const 12) (i32.const 0) (i32.const 100)))",
        3 + 5 + 50 + 1 + 200 + (4 + 24) / 8,
    );
}

#[test]
fn scans_cost_by_the_row() {
    let open = "(drop (call $scan_open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)))";
    let next = |cap: u32| {
        format!("{open} (drop (call $scan_next (i32.const 0) (i32.const 0) (i32.const {cap})))")
    };
    let (opened, row) = (6 + 50 + 2000, 200 + (8 + 8 + 24) / 8);
    costs(open, opened);
    costs(&next(100), opened + 4 + 50 + 2 * row);
    costs(&next(79), opened + 4 + 50 + row);
    costs(&next(39), opened + 4 + 50 + row);
    let put = "(call $put (i32.const 0) (i32.const 8) (i32.const 0) (i32.const 0))";
    costs(&format!("{put} {open}"), 5 + 50 + 400 + 1 + opened + 20);
    costs(&format!("{open} (call $scan_close (i32.const 0))"), opened + 2 + 50);
}
