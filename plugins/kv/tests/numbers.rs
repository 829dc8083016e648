//! Increments.

mod common;

use common::{Store, delete, get, put, put_for};
use raft_kv_plugin_kv::protocol::{
    Command, Incremented, Query, decode_get, decode_increment, failure,
};
use raft_kv_sdk::Failure;

fn increment(store: &mut Store, key: &[u8], delta: i64) -> Result<i64, Failure> {
    let response = store.apply(&Command::Increment { key, delta }.encode())?;
    let Incremented { value, version } = decode_increment(&response).expect("it is well-formed");
    let found = get(store, key);
    assert_eq!(found, Some((version, value.to_string().into_bytes())), "a get shows the number");
    Ok(value)
}

#[test]
fn a_number_begins_at_zero_and_goes_either_way() {
    let mut store = Store::new();
    assert_eq!(increment(&mut store, b"n", 5), Ok(5));
    assert_eq!(increment(&mut store, b"n", -7), Ok(-2));
    assert_eq!(increment(&mut store, b"n", 0), Ok(-2));
    delete(&mut store, b"n");
    assert_eq!(increment(&mut store, b"n", 1), Ok(1));
}

#[test]
fn what_was_put_counts() {
    let mut store = Store::new();
    for (text, after) in [("5", 6), ("-5", -4), ("0", 1), ("+7", 8), ("007", 8)] {
        put(&mut store, b"n", text.as_bytes());
        assert_eq!(increment(&mut store, b"n", 1), Ok(after), "{text}");
    }
}

#[test]
fn what_is_no_number_is_refused_and_stays() {
    let mut store = Store::new();
    let long = [b'x'; 100];
    let values: [&[u8]; 8] =
        [b"", b"abc", b"1.5", b" 1", b"1\n", b"\xff", b"9223372036854775808", &long];
    for value in values {
        put(&mut store, b"n", value);
        let refused = increment(&mut store, b"n", 1).expect_err("it is no number");
        assert_eq!(refused.code, failure::NOT_A_NUMBER, "{value:?}");
        assert!(refused.message.len() < 150, "{}", refused.message);
        assert_eq!(get(&mut store, b"n").map(|(_, found)| found), Some(value.to_vec()));
    }
    put(&mut store, b"n", b"1\n");
    let message = increment(&mut store, b"n", 1).expect_err("it is no number").message;
    let expected = "the value \"1\\n\" is not the decimal text of a signed 64-bit number";
    assert_eq!(message, expected);
}

#[test]
fn a_number_that_does_not_fit_is_refused_and_stays() {
    let mut store = Store::new();
    assert_eq!(increment(&mut store, b"n", i64::MAX), Ok(i64::MAX));
    let refused = increment(&mut store, b"n", 1).expect_err("it does not fit");
    assert_eq!(refused.code, failure::OVERFLOW);
    assert_eq!(increment(&mut store, b"n", -1), Ok(i64::MAX - 1));
    assert_eq!(increment(&mut store, b"m", i64::MIN), Ok(i64::MIN));
    let refused = increment(&mut store, b"m", -1).map_err(|failure| failure.code);
    assert_eq!(refused, Err(failure::OVERFLOW));
}

#[test]
fn a_number_keeps_the_end_it_has_and_begins_anew_after_it() {
    let mut store = Store::new();
    put_for(&mut store, b"n", b"5", 1_000);
    store.advance_ms(400);
    assert_eq!(increment(&mut store, b"n", 1), Ok(6));
    let response = store.query(&Query::Get { key: b"n" }.encode()).expect("a get succeeds");
    let found = decode_get(&response).expect("it is well-formed").expect("it is there");
    assert_eq!(found.ttl_ms, Some(600));
    store.advance_ms(600);
    assert_eq!(get(&mut store, b"n"), None);
    assert_eq!(increment(&mut store, b"n", 1), Ok(1), "absent is zero");
    store.advance_ms(10_000);
    put_for(&mut store, b"x", b"", 1);
    assert!(get(&mut store, b"n").is_some(), "the old end is nothing to the new number");
}

#[test]
fn a_number_that_was_incremented_is_removed_by_the_entry_of_its_put() {
    let mut store = Store::new();
    put_for(&mut store, b"n", b"5", 1_000);
    assert_eq!(increment(&mut store, b"n", 1), Ok(6));
    store.advance_ms(1_000);
    put_for(&mut store, b"x", b"", 1);
    assert!(!store.stored().contains_key(&b"n"[..]));
}
