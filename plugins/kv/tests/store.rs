//! What the store promises, on the SDK's test host.

mod common;

use raft_kv_plugin_kv::protocol::{Command, Query, Scan, ScanPage, decode_put, failure, version};
use raft_kv_sdk::{Failure, MAX_KEY_LEN, MAX_VALUE_LEN};

use common::{ALL, Store, delete, get, put, put_command, put_expecting, scan_page};

#[test]
fn a_value_is_there_from_its_put_to_its_delete() {
    let mut store = Store::new();
    assert_eq!(get(&mut store, b"k"), None);
    let first = put(&mut store, b"k", b"one");
    assert_eq!(get(&mut store, b"k"), Some((first, b"one".to_vec())));
    let second = put(&mut store, b"k", b"two");
    assert!(second > first);
    assert_eq!(get(&mut store, b"k"), Some((second, b"two".to_vec())));
    assert!(delete(&mut store, b"k"));
    assert_eq!(get(&mut store, b"k"), None);
    assert!(!delete(&mut store, b"k"));
}

#[test]
fn an_empty_value_is_a_value() {
    let mut store = Store::new();
    let version = put(&mut store, b"k", b"");
    assert_eq!(get(&mut store, b"k"), Some((version, Vec::new())));
    assert!(delete(&mut store, b"k"));
}

#[test]
fn keys_are_any_bytes() {
    let mut store = Store::new();
    let keys: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"a\0", b"\xff", b"\xff\xff"];
    for key in keys {
        put(&mut store, key, key);
    }
    for key in keys {
        assert_eq!(get(&mut store, key).map(|(_, value)| value), Some(key.to_vec()));
    }
    assert_eq!(scan_page(&mut store, ALL), (keys.map(<[u8]>::to_vec).to_vec(), false));
    let ff = Scan { prefix: b"\xff", ..ALL };
    assert_eq!(scan_page(&mut store, ff).0, [b"\xff".to_vec(), b"\xff\xff".to_vec()]);
    let after_ff = Scan { after: Some(b"\xff"), ..ff };
    assert_eq!(scan_page(&mut store, after_ff).0, [b"\xff\xff".to_vec()]);
}

#[test]
fn a_scan_gives_values_and_versions() {
    let mut store = Store::new();
    let one = put(&mut store, b"a", b"one");
    let two = put(&mut store, b"b", b"");
    let response = store.query(&Query::Scan(ALL).encode()).expect("a scan succeeds");
    let page = ScanPage::decode(&response).expect("a scan answers in its format");
    let rows: Vec<_> = page.rows().map(|row| (row.version, response[row.value].to_vec())).collect();
    assert_eq!(rows, [(one, b"one".to_vec()), (two, Vec::new())]);
}

#[test]
fn a_scan_keeps_to_its_prefix() {
    let mut store = Store::new();
    for key in ["a", "b", "b/1", "b/2", "b0", "c"] {
        put(&mut store, key.as_bytes(), b"v");
    }
    let scan = Scan { prefix: b"b/", ..ALL };
    assert_eq!(scan_page(&mut store, scan), (vec![b"b/1".to_vec(), b"b/2".to_vec()], false));
    let before_the_prefix = Scan { after: Some(b"a"), ..scan };
    assert_eq!(scan_page(&mut store, before_the_prefix).0.len(), 2);
    let beyond_the_prefix = Scan { after: Some(b"c"), ..scan };
    assert_eq!(scan_page(&mut store, beyond_the_prefix), (vec![], false));
    assert_eq!(scan_page(&mut store, Scan { prefix: b"x", ..ALL }), (vec![], false));
}

#[test]
fn pages_of_any_size_add_up_to_the_whole() {
    let mut store = Store::new();
    let keys: Vec<_> = (0..200).map(|number| format!("key{number:03}").into_bytes()).collect();
    for (number, key) in keys.iter().enumerate() {
        put(&mut store, key, &vec![b'v'; number * 7]);
    }
    for (max_rows, max_bytes) in [(1, u32::MAX), (7, u32::MAX), (200, 1), (200, 3_000), (5, 900)] {
        let mut seen: Vec<Vec<u8>> = Vec::new();
        loop {
            let after = seen.last().cloned();
            let scan = Scan { prefix: b"key", after: after.as_deref(), max_rows, max_bytes };
            let (page, more) = scan_page(&mut store, scan);
            assert!(!page.is_empty(), "every page makes progress");
            seen.extend(page);
            if !more {
                break;
            }
        }
        assert_eq!(seen, keys, "{max_rows} rows, {max_bytes} bytes a page");
    }
}

#[test]
fn limits_are_kept_and_more_is_said_only_if_there_is_more() {
    let mut store = Store::new();
    for key in [b"a", b"b", b"c"] {
        put(&mut store, key, b"0123456789");
    }
    let row = 16 + 1 + 10;
    let bytes = |max_bytes| Scan { max_bytes, ..ALL };
    for (scan, rows, more) in [
        (Scan { max_rows: 3, ..ALL }, 3, false),
        (Scan { max_rows: 2, ..ALL }, 2, true),
        (Scan { max_rows: 0, ..ALL }, 0, true),
        (bytes(1 + 3 * row), 3, false),
        (bytes(3 * row), 2, true),
        (bytes(1 + 2 * row), 2, true),
        (bytes(2 * row), 1, true),
        (bytes(0), 1, true),
    ] {
        let (page, said_more) = scan_page(&mut store, scan);
        assert_eq!((page.len(), said_more), (rows, more), "{scan:?}");
    }
    assert_eq!(scan_page(&mut Store::new(), Scan { max_rows: 0, ..ALL }), (vec![], false));
}

#[test]
fn compare_and_put_succeeds_only_on_the_version_it_expects() {
    let mut store = Store::new();
    let missing = put_expecting(&mut store, (b"k", b"v"), Some(3));
    let message = "key does not exist, expected version 3";
    assert_eq!(missing, Err(Failure::new(failure::VERSION_MISMATCH, message)));

    let first = put(&mut store, b"k", b"one");
    let second = put_expecting(&mut store, (b"k", b"two"), Some(first)).expect("it is current");
    let stale = put_expecting(&mut store, (b"k", b"three"), Some(first));
    let message = format!("version is {second}, expected {first}");
    assert_eq!(stale, Err(Failure::new(failure::VERSION_MISMATCH, message)));
    assert_eq!(get(&mut store, b"k"), Some((second, b"two".to_vec())));
}

#[test]
fn expecting_no_version_puts_only_an_absent_key() {
    let mut store = Store::new();
    let first = put_expecting(&mut store, (b"k", b"one"), Some(version::NONE));
    assert!(first.is_ok());
    let again = put_expecting(&mut store, (b"k", b"two"), Some(version::NONE));
    assert_eq!(again.map_err(|failure| failure.code), Err(failure::VERSION_MISMATCH));
    delete(&mut store, b"k");
    assert!(put_expecting(&mut store, (b"k", b"two"), Some(version::NONE)).is_ok());
}

#[test]
fn compare_and_put_notices_an_overwrite_within_the_same_entry() {
    let mut store = Store::new();
    let entry = [put_command(b"k", b"one", None), put_command(b"k", b"two", None)];
    let versions: Vec<_> = store
        .apply_entry(&entry)
        .into_iter()
        .map(|result| decode_put(&result.expect("a put succeeds")).expect("it has a version"))
        .collect();
    assert_eq!(version::log_index(versions[0]), version::log_index(versions[1]));
    let of_the_first_caller = put_expecting(&mut store, (b"k", b"three"), Some(versions[0]));
    assert_eq!(of_the_first_caller.map_err(|f| f.code), Err(failure::VERSION_MISMATCH));
    assert_eq!(get(&mut store, b"k"), Some((versions[1], b"two".to_vec())));
    assert!(put_expecting(&mut store, (b"k", b"three"), Some(versions[1])).is_ok());
}

#[test]
fn compare_and_put_notices_a_key_deleted_and_put_again_in_the_same_entry() {
    let mut store = Store::new();
    let entry = [
        put_command(b"k", b"one", None),
        Command::Delete { key: b"k", expected: None }.encode(),
        put_command(b"k", b"one", None),
    ];
    let results = store.apply_entry(&entry);
    let first = results[0].as_deref().map(decode_put).expect("a put succeeds");
    let stale = put_expecting(&mut store, (b"k", b"two"), Some(first.expect("it has a version")));
    assert_eq!(stale.map_err(|failure| failure.code), Err(failure::VERSION_MISMATCH));
}

#[test]
fn only_one_of_two_rivals_in_an_entry_wins() {
    let mut store = Store::new();
    let base = put(&mut store, b"k", b"base");
    let rivals = [put_command(b"k", b"one", Some(base)), put_command(b"k", b"two", Some(base))];
    let results = store.apply_entry(&rivals);
    assert!(results[0].is_ok());
    assert_eq!(results[1].as_ref().map_err(|failure| failure.code), Err(failure::VERSION_MISMATCH));
    assert_eq!(get(&mut store, b"k").map(|(_, value)| value), Some(b"one".to_vec()));
}

#[test]
fn every_truncation_fails_with_a_message_or_is_a_shorter_value_or_key() {
    let mut store = Store::new();
    let commands = [
        (put_command(b"key", b"value", None), 1 + 1 + 4 + 3),
        (put_command(b"key", b"value", Some(5)), 1 + 1 + 8 + 4 + 3),
        (Command::Delete { key: b"key", expected: None }.encode(), 1),
    ];
    for (command, fixed) in commands {
        for len in 0..command.len() {
            let result = store.apply(&command[..len]);
            let malformed = matches!(&result, Err(why) if why.code == failure::MALFORMED && !why.message.is_empty());
            assert_eq!(malformed, len < fixed, "{len} bytes of {command:?}: {result:?}");
        }
    }
    let queries = [
        (Query::Get { key: b"key" }.encode(), 1),
        (Query::Scan(Scan { prefix: b"key", ..ALL }).encode(), 1 + 1 + 4 + 4 + 4 + 3),
        (Query::Scan(Scan { after: Some(b"k"), ..ALL }).encode(), 1 + 1 + 4 + 4 + 4),
    ];
    for (query, fixed) in queries {
        for len in 0..query.len() {
            let result = store.query(&query[..len]);
            let malformed = matches!(&result, Err(why) if why.code == failure::MALFORMED);
            assert_eq!(malformed, len < fixed, "{len} bytes of {query:?}: {result:?}");
        }
    }
}

#[test]
fn what_the_host_would_trap_on_is_refused() {
    let mut store = Store::new();
    let long = vec![b'k'; MAX_KEY_LEN + 1];
    let large = vec![b'v'; MAX_VALUE_LEN - 23];
    let refused = [
        store.apply(&put_command(&long, b"", None)),
        store.apply(&put_command(b"k", &large, None)),
        store.apply(&Command::Delete { key: &long, expected: None }.encode()),
        store.query(&Query::Get { key: &long }.encode()),
        store.query(&Query::Scan(Scan { prefix: &long, ..ALL }).encode()),
        store.query(&Query::Scan(Scan { after: Some(&long), ..ALL }).encode()),
        store.apply(&Query::Get { key: b"k" }.encode()),
        store.query(&put_command(b"k", b"v", None)),
    ];
    for result in refused {
        assert_eq!(result.map_err(|failure| failure.code), Err(failure::MALFORMED));
    }
    put(&mut store, &long[1..], &large[1..]);
    assert_eq!(get(&mut store, &long[1..]).map(|(_, value)| value.len()), Some(MAX_VALUE_LEN - 24));
}

#[test]
fn data_of_another_plugin_is_a_failure_not_a_panic() {
    let mut store = Store::new();
    store.stored().insert(b"k".to_vec(), b"short".to_vec());
    let failures = [
        store.query(&Query::Get { key: b"k" }.encode()),
        store.query(&Query::Scan(ALL).encode()),
        store.apply(&put_command(b"k", b"v", Some(1))),
    ];
    for result in failures {
        assert_eq!(result.map_err(|failure| failure.code), Err(failure::FOREIGN_VALUE));
    }
    put(&mut store, b"k", b"ours now");
    assert!(get(&mut store, b"k").is_some());
}
