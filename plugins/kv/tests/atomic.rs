//! Atomic commands: conditions, and operations that all take effect or none.

mod common;

use common::{Store, get, keys, put, put_for};
use raft_kv_plugin_kv::protocol::{
    Atomic, AtomicOperation, AtomicOutcome, Command, Compare, Condition, Put, decode_atomic,
    decode_delete, decode_get, decode_increment, decode_put, failure, version,
};
use raft_kv_sdk::Failure;

/// What became of a command, and the responses to its operations.
type Done = (AtomicOutcome, Vec<Vec<u8>>);

fn run(
    store: &mut Store,
    compares: &[Compare<'_>],
    operations: &[AtomicOperation<'_>],
) -> Result<Done, Failure> {
    let (mut encoded_compares, mut encoded_operations) = (Vec::new(), Vec::new());
    compares.iter().for_each(|compare| Atomic::push_compare(&mut encoded_compares, compare));
    operations.iter().for_each(|o| Atomic::push_operation(&mut encoded_operations, o));
    let atomic = Atomic::new(&encoded_compares, &encoded_operations).expect("it is well-formed");
    let response = store.apply(&Command::Atomic(atomic).encode())?;
    let outcome = decode_atomic(&response).expect("it is well-formed");
    let answers = match &outcome {
        AtomicOutcome::Held(ranges) => {
            ranges.iter().map(|r| response[r.clone()].to_vec()).collect()
        }
        AtomicOutcome::Failed { .. } => Vec::new(),
    };
    Ok((outcome, answers))
}

fn put_of<'a>(key: &'a [u8], value: &'a [u8]) -> AtomicOperation<'a> {
    AtomicOperation::Write(Command::Put(Put { key, value, expected: None, ttl_ms: None }))
}

fn delete_of(key: &[u8]) -> AtomicOperation<'_> {
    AtomicOperation::Write(Command::Delete { key, expected: None })
}

fn exists(key: &[u8]) -> Compare<'_> {
    Compare { key, condition: Condition::Exists }
}

fn has_version(key: &[u8], version: u64) -> Compare<'_> {
    Compare { key, condition: Condition::Version(version) }
}

#[test]
fn operations_take_effect_in_order_and_each_has_its_response() {
    let mut store = Store::new();
    put(&mut store, b"old", b"v");
    let increment = AtomicOperation::Write(Command::Increment { key: b"n", delta: 4 });
    let operations = [
        put_of(b"k", b"one"),
        AtomicOperation::Get { key: b"k" },
        put_of(b"k", b"two"),
        delete_of(b"old"),
        delete_of(b"old"),
        increment,
        increment,
        AtomicOperation::Get { key: b"old" },
    ];
    let (_, answers) = run(&mut store, &[], &operations).expect("it succeeds");
    let version = decode_put(&answers[0]).expect("a version");
    let found = decode_get(&answers[1]).expect("well-formed").expect("there");
    assert_eq!(&answers[1][found.value], b"one");
    assert_eq!(decode_put(&answers[2]), Ok(version));
    assert_eq!([decode_delete(&answers[3]), decode_delete(&answers[4])], [Ok(true), Ok(false)]);
    assert_eq!(decode_increment(&answers[6]).map(|number| number.value), Ok(8));
    assert_eq!(decode_get(&answers[7]), Ok(None));
    assert_eq!(get(&mut store, b"k"), Some((version, b"two".to_vec())));
    assert_eq!(keys(&mut store), [b"k", b"n"]);
}

#[test]
fn the_first_condition_that_fails_is_named_and_nothing_is_done() {
    let mut store = Store::new();
    let version = put(&mut store, b"k", b"v");
    let write = [put_of(b"k", b"w"), put_of(b"l", b"w")];
    for (compares, compare, found) in [
        (vec![has_version(b"k", version + 1)], 0, version),
        (vec![exists(b"k"), exists(b"l")], 1, version::NONE),
        (vec![has_version(b"k", version::NONE), exists(b"l")], 0, version),
        (vec![has_version(b"k", version), has_version(b"l", 3)], 1, version::NONE),
    ] {
        let (outcome, _) = run(&mut store, &compares, &write).expect("it is answered");
        assert_eq!(outcome, AtomicOutcome::Failed { compare, version: found }, "{compares:?}");
        assert_eq!(get(&mut store, b"k"), Some((version, b"v".to_vec())));
        assert_eq!(keys(&mut store), [b"k"]);
    }
    let all = [exists(b"k"), has_version(b"k", version), has_version(b"l", version::NONE)];
    let (outcome, answers) = run(&mut store, &all, &write).expect("it is answered");
    assert!(matches!(outcome, AtomicOutcome::Held(_)));
    assert_eq!(answers.len(), 2);
    assert_eq!(keys(&mut store), [b"k", b"l"]);
}

#[test]
fn conditions_and_reads_see_no_value_that_is_over() {
    let mut store = Store::new();
    put_for(&mut store, b"k", b"v", 1_000);
    let read = [AtomicOperation::Get { key: b"k" }];
    let (_, answers) = run(&mut store, &[exists(b"k")], &read).expect("it succeeds");
    let found = decode_get(&answers[0]).expect("well-formed").expect("there");
    assert_eq!(found.ttl_ms, Some(1_000));
    store.advance_ms(1_000);
    let (outcome, _) = run(&mut store, &[exists(b"k")], &read).expect("it is answered");
    assert_eq!(outcome, AtomicOutcome::Failed { compare: 0, version: version::NONE });
    let (_, answers) = run(&mut store, &[has_version(b"k", 0)], &read).expect("it succeeds");
    assert!(answers[0].is_empty());
}

#[test]
fn one_operation_that_fails_undoes_the_others() {
    let mut store = Store::new();
    put(&mut store, b"n", b"no number");
    let with_ttl = Put { key: b"l", value: b"v", expected: None, ttl_ms: Some(5) };
    let increment = AtomicOperation::Write(Command::Increment { key: b"n", delta: 1 });
    let operations =
        [put_of(b"k", b"v"), AtomicOperation::Write(Command::Put(with_ttl)), increment];
    let failed = run(&mut store, &[], &operations).expect_err("the last one fails");
    assert_eq!(failed.code, failure::NOT_A_NUMBER);
    assert!(failed.message.starts_with("operation 2: the value"), "{}", failed.message);
    assert_eq!(keys(&mut store), [b"n"]);
    assert_eq!(store.stored().len(), 1);
}

#[test]
fn a_response_has_a_limit() {
    let mut store = Store::new();
    put(&mut store, b"k", &vec![b'v'; 6 << 20]);
    let read = AtomicOperation::Get { key: b"k" };
    assert!(run(&mut store, &[], &[read; 2]).is_ok());
    let failed = run(&mut store, &[], &[put_of(b"l", b""), read, read, read]).map(|_| ());
    assert_eq!(failed.map_err(|failure| failure.code), Err(failure::RESPONSE_TOO_LARGE));
    assert_eq!(keys(&mut store), [b"k"]);
}

#[test]
fn an_empty_command_holds_and_a_malformed_one_fails() {
    let mut store = Store::new();
    assert_eq!(run(&mut store, &[], &[]), Ok((AtomicOutcome::Held(vec![]), vec![])));
    let refused = store.apply(b"\x05\x01\0\0\0").map_err(|failure| failure.code);
    assert_eq!(refused, Err(failure::MALFORMED));
}
