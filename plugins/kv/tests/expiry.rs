//! Values with a time to live: when they are gone, and how they go.

mod common;

use common::{ALL, Store, delete, get, keys, put, put_command, put_expecting, put_for, scan_page};
use raft_kv_plugin_kv::protocol::{
    Command, Put, Query, Scan, decode_expiring, decode_get, failure, version,
};
use raft_kv_sdk::MAX_KEY_LEN;

const SECOND: u64 = 1_000;

fn ttl_of(store: &mut Store, key: &[u8]) -> Option<u64> {
    let response = store.query(&Query::Get { key }.encode()).expect("a get succeeds");
    decode_get(&response).expect("it is well-formed").expect("the key is there").ttl_ms
}

fn is_expiring(store: &mut Store, until_ms: u64) -> bool {
    let response = store.query(&Query::Expiring { until_ms }.encode()).expect("it succeeds");
    decode_expiring(&response).expect("it is well-formed")
}

/// The key of the index that notes when a value ends.
fn entry(ends_ms: u64, key: &[u8]) -> Vec<u8> {
    [&[0xff; 8], &ends_ms.to_be_bytes()[..], key].concat()
}

#[test]
fn a_value_is_there_until_its_time_is_over_and_not_a_millisecond_longer() {
    let mut store = Store::new();
    store.set_time_ms(5 * SECOND);
    let version = put_for(&mut store, b"k", b"v", SECOND);
    assert_eq!(version & (1 << 63), 0);
    assert_eq!(get(&mut store, b"k"), Some((version, b"v".to_vec())));
    assert_eq!(ttl_of(&mut store, b"k"), Some(SECOND));
    store.advance_ms(SECOND - 1);
    assert_eq!(get(&mut store, b"k"), Some((version, b"v".to_vec())));
    assert_eq!(ttl_of(&mut store, b"k"), Some(1));
    assert_eq!(keys(&mut store), [b"k"]);
    store.advance_ms(1);
    assert_eq!(get(&mut store, b"k"), None);
    assert!(keys(&mut store).is_empty());
    assert!(!delete(&mut store, b"k"), "it did not exist any more");
}

#[test]
fn a_value_that_is_over_counts_as_absent_for_comparisons() {
    let mut store = Store::new();
    let old = put_for(&mut store, b"k", b"v", SECOND);
    store.advance_ms(SECOND);
    let stale = put_expecting(&mut store, (b"k", b"w"), Some(old));
    assert_eq!(stale.map_err(|failure| failure.code), Err(failure::VERSION_MISMATCH));
    let fresh = put_expecting(&mut store, (b"k", b"w"), Some(version::NONE)).expect("it is absent");
    assert_eq!(get(&mut store, b"k"), Some((fresh, b"w".to_vec())));
}

#[test]
fn the_last_put_alone_decides_how_long_a_value_lives() {
    let mut store = Store::new();
    put_for(&mut store, b"k", b"short", SECOND);
    put(&mut store, b"k", b"for ever");
    assert_eq!(ttl_of(&mut store, b"k"), None);
    put_for(&mut store, b"l", b"short", SECOND);
    put_for(&mut store, b"l", b"long", 10 * SECOND);
    store.advance_ms(5 * SECOND);
    // Whoever puts next finds the entries of what was replaced.
    put_for(&mut store, b"m", b"", SECOND);
    assert_eq!(keys(&mut store), [b"k", b"l", b"m"]);
    store.advance_ms(5 * SECOND);
    assert_eq!(keys(&mut store), [b"k"]);
}

#[test]
fn a_time_to_live_without_end_is_no_overflow() {
    let mut store = Store::new();
    store.set_time_ms(SECOND);
    put_for(&mut store, b"k", b"v", u64::MAX);
    store.advance_ms(1_000_000 * SECOND);
    assert!(get(&mut store, b"k").is_some());
    assert!(is_expiring(&mut store, u64::MAX));
    put_for(&mut store, b"l", b"v", 1);
    assert!(get(&mut store, b"k").is_some());
}

#[test]
fn puts_remove_what_is_over_a_few_at_a_time() {
    let mut store = Store::new();
    for number in 0..20_u8 {
        put_for(&mut store, &[b'k', number], b"v", SECOND + u64::from(number));
    }
    assert_eq!(store.stored().len(), 40, "values and entries");
    store.advance_ms(2 * SECOND);
    put_for(&mut store, b"x", b"", SECOND);
    assert_eq!(store.stored().len(), 40 - 16 + 2);
    assert!(!store.stored().contains_key(&b"k\x00"[..]), "the oldest goes first");
    put(&mut store, b"y", b"");
    assert_eq!(store.stored().len(), 40 - 16 + 3, "who has no time to live does not pay");
    put_for(&mut store, b"x", b"", SECOND);
    put_for(&mut store, b"x", b"", SECOND);
    let left: Vec<Vec<u8>> = store.stored().keys().cloned().collect();
    let now = 2 * SECOND;
    assert_eq!(left, [b"x".to_vec(), b"y".to_vec(), entry(now + SECOND, b"x")]);
}

#[test]
fn a_delete_takes_the_entry_along() {
    let mut store = Store::new();
    put_for(&mut store, b"k", b"v", SECOND);
    assert!(delete(&mut store, b"k"));
    assert!(store.stored().is_empty());
    put_for(&mut store, b"k", b"v", SECOND);
    store.advance_ms(SECOND);
    assert!(!delete(&mut store, b"k"));
    assert!(store.stored().is_empty());
}

#[test]
fn a_user_may_have_the_very_keys_of_the_index() {
    let mut store = Store::new();
    let key = entry(SECOND, b"k");
    // Before and after the value whose entry it is, with and without an end of its own.
    let before = put(&mut store, &key, b"mine");
    put_for(&mut store, b"k", b"v", SECOND);
    assert_eq!(get(&mut store, &key), Some((before, b"mine".to_vec())));
    let after = put(&mut store, &key, b"mine still");
    assert_eq!(get(&mut store, &key), Some((after, b"mine still".to_vec())));
    assert_eq!(keys(&mut store), [b"k".to_vec(), key.clone()]);
    assert!(is_expiring(&mut store, SECOND), "the entry is there all the same");
    let own = put_for(&mut store, &key, b"for a while", 3 * SECOND);
    assert_eq!(ttl_of(&mut store, &key), Some(3 * SECOND));
    assert_eq!(get(&mut store, &key), Some((own, b"for a while".to_vec())));
    store.advance_ms(SECOND);
    put_for(&mut store, b"x", b"", 10 * SECOND);
    assert!(!store.stored().contains_key(&b"k"[..]), "removed by its entry");
    assert_eq!(get(&mut store, &key), Some((own, b"for a while".to_vec())));
    store.advance_ms(2 * SECOND);
    assert_eq!(get(&mut store, &key), None);
    put_for(&mut store, b"x", b"", 10 * SECOND);
    assert!(!store.stored().contains_key(&key));
}

#[test]
fn deleting_a_users_key_of_the_index_leaves_the_entry_and_the_other_way_round() {
    let mut store = Store::new();
    let key = entry(SECOND, b"k");
    put_for(&mut store, b"k", b"v", SECOND);
    assert!(!delete(&mut store, &key), "an entry is no value");
    assert_eq!(get(&mut store, &key), None);
    put(&mut store, &key, b"mine");
    assert!(delete(&mut store, &key));
    assert!(!delete(&mut store, &key));
    assert!(is_expiring(&mut store, SECOND));
    let absent = put_expecting(&mut store, (&key, b"mine"), Some(version::NONE));
    assert!(absent.is_ok(), "{absent:?}");
    assert!(delete(&mut store, b"k"));
    assert!(!is_expiring(&mut store, SECOND));
    assert_eq!(keys(&mut store), [key]);
}

#[test]
fn values_of_version_0_1_0_that_look_like_entries_are_values() {
    let mut store = Store::new();
    let key = entry(SECOND, b"k");
    let stored = [&version::pack(9, 1).expect("it fits").to_le_bytes()[..], b"old"].concat();
    store.stored().insert(key.clone(), stored);
    store.advance_ms(2 * SECOND);
    put_for(&mut store, b"x", b"", SECOND);
    assert_eq!(get(&mut store, &key).map(|(_, value)| value), Some(b"old".to_vec()));
    assert!(!is_expiring(&mut store, 2 * SECOND + 1));
    assert!(is_expiring(&mut store, 3 * SECOND));
}

#[test]
fn scans_show_neither_entries_nor_what_is_over() {
    let mut store = Store::new();
    for key in [b"a", b"b", b"c", b"d"] {
        put_for(&mut store, key, b"v", if key == b"b" { SECOND } else { 9 * SECOND });
    }
    put(&mut store, &[0xff; 9], b"last");
    store.advance_ms(SECOND);
    let all = [b"a".to_vec(), b"c".to_vec(), b"d".to_vec(), vec![0xff; 9]];
    assert_eq!(scan_page(&mut store, ALL), (all.to_vec(), false));
    let two = Scan { max_rows: 2, ..ALL };
    assert_eq!(scan_page(&mut store, two), (all[..2].to_vec(), true));
    let rest = Scan { after: Some(b"d"), max_rows: 1, ..ALL };
    assert_eq!(
        scan_page(&mut store, rest),
        (all[3..].to_vec(), false),
        "entries are no more to come"
    );
    let prefix = Scan { prefix: &[0xff; 8], ..ALL };
    assert_eq!(scan_page(&mut store, prefix), (all[3..].to_vec(), false));
}

#[test]
fn what_is_going_to_end_is_known_ahead() {
    let mut store = Store::new();
    store.set_time_ms(5 * SECOND);
    assert!(!is_expiring(&mut store, u64::MAX));
    put_for(&mut store, b"k", b"v", SECOND);
    assert!(!is_expiring(&mut store, 6 * SECOND - 1));
    assert!(is_expiring(&mut store, 6 * SECOND));
    store.advance_ms(SECOND);
    assert!(!is_expiring(&mut store, u64::MAX), "it is over already");
}

#[test]
fn a_failed_put_leaves_nothing_in_the_index() {
    let mut store = Store::new();
    put(&mut store, b"k", b"v");
    let put = Put { key: b"k", value: b"w", expected: Some(1), ttl_ms: Some(SECOND) };
    assert!(store.apply(&Command::Put(put).encode()).is_err());
    assert_eq!(store.stored().len(), 1);
    let long = vec![b'k'; MAX_KEY_LEN - 15];
    let put = Put { key: &long, value: b"w", expected: None, ttl_ms: Some(SECOND) };
    let refused = store.apply(&Command::Put(put).encode());
    assert_eq!(refused.map_err(|failure| failure.code), Err(failure::MALFORMED));
    assert_eq!(store.stored().len(), 1);
    put_for(&mut store, &long[1..], b"w", SECOND);
    assert_eq!(store.stored().len(), 3);
}

#[test]
fn a_put_without_a_time_to_live_stores_what_it_always_did() {
    let mut store = Store::new();
    let version = put(&mut store, b"k", b"value");
    let stored = [&version.to_le_bytes()[..], b"value"].concat();
    assert_eq!(store.stored().get(&b"k"[..]), Some(&stored));
    assert_eq!(store.query(&Query::Get { key: b"k" }.encode()), Ok(stored));
    assert_eq!(put_command(b"k", b"v", None), b"\x01\0\x01\0\0\0kv");
}
