//! Commands and queries made to do harm, one a name: each fails alone, in a known way and soon, while
//! those before and after it work.

use std::time::{Duration, Instant};

use super::support::*;
use crate::wasm::{
    Call, Executor, FailureKind, Limits, PluginEngine, PluginModule, QueryResult, Reuse,
};

/// Time within which each of them has to be done with. Generous: what it is to tell apart from is
/// minutes.
const SOON: Duration = Duration::from_secs(20);

const ENTRIES: &str = r#"(func (export "apply")) (func (export "query"))"#;
const MEMORY: &str = r#"(memory (export "memory") 1)"#;

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
        ("writing all the time", big, forever("(call $put (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 9000000))"), Fails(MemoryLimit)),
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
               (drop (call $next_command (i32.const 0) (i32.const 64)))
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
